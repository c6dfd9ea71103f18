//! The search list of `resolv.conf`, for names that the resolver takes for whole ones.
//!
//! musl's resolver, which a statically linked program has, does not look there for names with `ndots` dots or more. The
//! name of the controllers' Service has two. A kubelet sets `ndots` to 5, but a pod may set it to less. Nor does it read long
//! lines.

/// Domains that are tried. A pod may have no more than that.
const MOST: usize = 32;
/// `ndots` of who says nothing of it.
const NDOTS: usize = 1;
/// A line with as many bytes is left out by musl.
const TOO_LONG: usize = 255;

/// `name`, as `host:port`, in each domain of the search list, in its order; none if the resolver has looked there itself.
/// Each host ends with a dot, so that no resolver adds more. One that ends with a dot already is in no other domain.
pub(super) fn names(name: &str, resolv_conf: &str) -> Vec<String> {
    let list = list(resolv_conf);
    match name.rsplit_once(':') {
        Some((host, port)) if !host.ends_with('.') && !is_searched(host, list, resolv_conf) => {
            domains(list).take(MOST).map(|domain| format!("{host}.{domain}.:{port}")).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether every resolver looks for `host` in the search list. (glibc's always does: what it did not find there is asked
/// for again if `ndots` is small.)
fn is_searched(host: &str, list: &str, resolv_conf: &str) -> bool {
    let options = resolv_conf.lines().filter_map(|line| after("options", line)).flat_map(str::split_whitespace);
    let ndots = options.filter_map(|option| option.strip_prefix("ndots:")?.parse().ok()).next_back().unwrap_or(NDOTS);
    host.matches('.').count() < ndots && list.len() < TOO_LONG
}

/// The line with the search list. Of several, the last one counts, as for all resolvers.
fn list(resolv_conf: &str) -> &str {
    let is_list = |line: &&str| ["search", "domain"].iter().any(|keyword| after(keyword, line).is_some());
    resolv_conf.lines().rev().find(is_list).unwrap_or_default()
}

fn domains(list: &str) -> impl Iterator<Item = &str> {
    let domains = list.split_whitespace().skip(1).map(|domain| domain.trim_end_matches('.'));
    domains.filter(|domain| !domain.is_empty())
}

fn after<'a>(keyword: &str, line: &'a str) -> Option<&'a str> {
    line.strip_prefix(keyword).filter(|rest| rest.starts_with(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_each_domain() {
        let conf = "nameserver 10.96.0.10\nsearch team-a.svc.cluster.local\tcluster.local. .\noptions ndots:1\n";
        assert_eq!(
            names("controllers.vmcp-system:7070", conf),
            ["controllers.vmcp-system.team-a.svc.cluster.local.:7070", "controllers.vmcp-system.cluster.local.:7070"]
        );
        assert_eq!(names("whole.example.:7070", conf), [""; 0]);
    }

    #[test]
    fn only_the_last_list_counts_and_comments_are_none() {
        for conf in [
            "search a\nsearch b\n",
            "search a\ndomain b\r\n",
            "search b\n#search c\n; search d\n search e\nsearching f\n",
        ] {
            assert_eq!(names("c.d:1", conf), ["c.d.b.:1"], "{conf}");
        }
        for conf in ["", "search", "search \n", "options ndots:5"] {
            assert_eq!(names("c.d:1", conf), [""; 0], "{conf}");
        }
    }

    #[test]
    fn what_the_resolver_has_looked_for_is_not_asked_for_again() {
        let conf = |options: &str| format!("search b\n{options}");
        for (name, options, is_again) in [
            ("c:1", "", false),
            ("c.d:1", "", true),
            ("c.d.svc:1", "options ndots:5\n", false),
            ("c.d.svc:1", "options timeout:1 ndots:3\n", false),
            ("c.d.svc:1", "options ndots:2\n", true),
            ("c.d.svc:1", "options ndots:5\noptions ndots:2", true),
            ("c.d.svc:1", "#options ndots:5\noptions ndots:\n", true),
            ("c:1", "options ndots:0\n", true),
        ] {
            assert_eq!(!names(name, &conf(options)).is_empty(), is_again, "{name} {options}");
        }
    }

    #[test]
    fn a_line_that_musl_leaves_out_is_read_here() {
        let list = format!("search {}", "d ".repeat((TOO_LONG - 7) / 2));
        let conf = |list: &str| format!("{list}\noptions ndots:5\n");
        assert_eq!(list.len(), TOO_LONG);
        assert_eq!(names("c.d.svc:1", &conf(&list)).len(), MOST);
        assert_eq!(names("c.d.svc:1", &conf(list.trim_end())).len(), 0);
    }

    #[test]
    fn no_more_domains_than_a_pod_may_have() {
        let conf = format!("search{}", " d".repeat(MOST + 1));
        assert_eq!(names("c.d:1", &conf).len(), MOST);
    }
}
