//! Where a controller's name leads.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::search_list;
use crate::runtime::small_file;

/// For one name to be resolved, and as much for it to be found in the search list.
const RESOLVE: Duration = Duration::from_secs(5);
/// Where the search list is.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Much more than there is.
const MAX_RESOLV_CONF: u64 = 64 << 10;

/// Who knows names.
pub(super) trait Resolver: Sync {
    /// Where `name` is, as `host:port`.
    fn addresses(&self, name: &str) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;

    /// What `resolv.conf` says.
    fn conf(&self) -> impl Future<Output = Option<String>> + Send;
}

/// The resolver of the system.
pub(super) struct System;

impl Resolver for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host(name).await?.collect())
    }

    async fn conf(&self) -> Option<String> {
        let conf = small_file::load(Path::new(RESOLV_CONF), MAX_RESOLV_CONF).await.ok()?;
        Some(String::from_utf8_lossy(&conf).into_owned())
    }
}

/// Where `name` is, as `host:port`. The resolver may not have looked for it in the search list.
pub(super) async fn lookup(resolver: &impl Resolver, name: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let found = timeout(RESOLVE, resolver.addresses(name)).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if found.is_ok() {
        return found;
    }
    // In a time of its own: a name server may take all of the first to find nothing.
    timeout(RESOLVE, search(resolver, name)).await.ok().flatten().map_or(found, Ok)
}

/// The same in the domains of the search list.
async fn search(resolver: &impl Resolver, name: &str) -> Option<Vec<SocketAddr>> {
    let conf = resolver.conf().await?;
    for name in search_list::names(name, &conf) {
        if let Ok(found) = resolver.addresses(&name).await {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;

    /// Of a pod that says so in its `dnsConfig`.
    const FEW_DOTS: &str = "search team-a.svc.cluster.local cluster.local\noptions ndots:2\n";
    /// As a kubelet writes it.
    const MANY_DOTS: &str = "search team-a.svc.cluster.local cluster.local\noptions ndots:5\n";
    const NAME: &str = "controller.vmcp-system.svc:7070";
    const WHOLE: &str = "controller.vmcp-system.svc.cluster.local.:7070";

    /// Knows some names, and hangs when it is asked for others. It is asked for whole names only.
    #[derive(Default)]
    pub struct Scripted {
        conf: Option<&'static str>,
        known: HashMap<&'static str, SocketAddr>,
        hanging: Vec<&'static str>,
        asked: Mutex<Vec<String>>,
    }

    impl Scripted {
        pub fn new(conf: &'static str, known: &[&'static str], hanging: &[&'static str]) -> Self {
            let known = known.iter().map(|name| (*name, address())).collect();
            Self { conf: Some(conf), known, hanging: hanging.to_vec(), asked: Mutex::default() }
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().clone()
        }
    }

    impl Resolver for Scripted {
        async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
            self.asked.lock().push(name.to_owned());
            if self.hanging.contains(&name) {
                std::future::pending::<()>().await;
            }
            self.known.get(name).map(|address| vec![*address]).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        async fn conf(&self) -> Option<String> {
            self.conf.map(str::to_owned)
        }
    }

    pub fn address() -> SocketAddr {
        "10.0.0.7:7070".parse().unwrap()
    }

    #[tokio::test]
    async fn what_is_found_at_once_is_looked_for_nowhere_else() {
        let resolver = Scripted::new(FEW_DOTS, &[NAME, WHOLE], &[]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap(), [address()]);
        assert_eq!(resolver.asked(), [NAME]);
        assert_eq!(lookup(&resolver, "10.0.0.7:7070").await.unwrap(), [address()]);
        assert_eq!(resolver.asked(), [NAME], "an address is no name");
    }

    #[tokio::test]
    async fn what_the_resolver_takes_for_a_whole_name_is_found_in_the_search_list() {
        let resolver = Scripted::new(FEW_DOTS, &[WHOLE], &[]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap(), [address()]);
        let own = "controller.vmcp-system.svc.team-a.svc.cluster.local.:7070";
        assert_eq!(resolver.asked(), [NAME, own, WHOLE]);
    }

    #[tokio::test]
    async fn what_is_nowhere_is_asked_for_once_per_name() {
        let resolver = Scripted::new(MANY_DOTS, &[], &[]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(resolver.asked(), [NAME], "the resolver has looked in the search list");

        let resolver = Scripted::new(FEW_DOTS, &[], &[]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut asked = resolver.asked();
        assert_eq!(asked.len(), 3, "{asked:?}");
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 3, "{asked:?}");

        let no_conf = Scripted::default();
        assert_eq!(lookup(&no_conf, NAME).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(no_conf.asked(), [NAME]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_hangs_takes_its_time_and_no_more() {
        let start = Instant::now();
        let resolver = Scripted::new(FEW_DOTS, &[WHOLE], &[NAME]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap(), [address()], "the search list has a time of its own");
        assert_eq!(start.elapsed(), RESOLVE);

        let start = Instant::now();
        let resolver = Scripted::new(FEW_DOTS, &[], &[NAME, WHOLE]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), 2 * RESOLVE);

        let start = Instant::now();
        let resolver = Scripted::new(MANY_DOTS, &[], &[NAME]);
        assert_eq!(lookup(&resolver, NAME).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), RESOLVE);
    }
}
