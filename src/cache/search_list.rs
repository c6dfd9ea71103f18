//! The search list of `resolv.conf`, for names that the resolver takes for whole ones.
//!
//! musl's resolver, which a statically linked program has, does not look there for names with `ndots` dots or more. The
//! name of the controllers' Service has two. A kubelet sets `ndots` to 5, but a pod may set it to less.

/// Domains that are tried. A pod may have no more than that.
const MOST: usize = 32;

/// `name`, as `host:port`, in each domain of the search list, in its order. Each host ends with a dot, so that no
/// resolver adds more. One that ends with a dot already is in no other domain.
pub(super) fn names(name: &str, resolv_conf: &str) -> Vec<String> {
    match name.rsplit_once(':') {
        Some((host, port)) if !host.ends_with('.') => {
            domains(resolv_conf).take(MOST).map(|domain| format!("{host}.{domain}.:{port}")).collect()
        }
        _ => Vec::new(),
    }
}

/// Of several lines, the last one counts, as for all resolvers.
fn domains(resolv_conf: &str) -> impl Iterator<Item = &str> {
    let said = |line| ["search", "domain"].into_iter().find_map(|keyword| after(keyword, line));
    let list = resolv_conf.lines().rev().find_map(said).unwrap_or_default();
    list.split_whitespace().map(|domain| domain.trim_end_matches('.')).filter(|domain| !domain.is_empty())
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
            assert_eq!(names("c:1", conf), ["c.b.:1"], "{conf}");
        }
        for conf in ["", "search", "search \n", "options ndots:5"] {
            assert_eq!(names("c:1", conf), [""; 0], "{conf}");
        }
    }

    #[test]
    fn no_more_domains_than_a_pod_may_have() {
        let conf = format!("search{}", " d".repeat(MOST + 1));
        assert_eq!(names("c:1", &conf).len(), MOST);
    }
}
