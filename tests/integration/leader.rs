//! Leader election on a real API server, behind a network that can be made to fail.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use testkit::{ControlPlane, ControlPlaneOptions, ProxyMode, TcpProxy, eventually, policy_rule};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use vmcp_session::controller::election::{Elector, FIELD_MANAGER, Leadership, LeadershipGuard};
use vmcp_session::core::election::Timings;

const SOON: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "vmcp-system";
const LEASE: &str = "vmcp-session-controller";
/// How often the watcher below looks who leads.
const LOOK: Duration = Duration::from_millis(1);

fn timings(lease: u64, renew: u64, retry: u64) -> Timings {
    let millis = Duration::from_millis;
    Timings::new(millis(lease), millis(renew), millis(retry)).unwrap()
}

/// An API server, and an account that may do what the election needs and no more.
struct Setup {
    plane: ControlPlane,
    token: String,
}

impl Setup {
    async fn new() -> Self {
        let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
        plane.create_namespace(NAMESPACE).await.unwrap();
        plane.create_service_account(NAMESPACE, "controller").await.unwrap();
        let rules = vec![policy_rule("coordination.k8s.io", &["leases"], &["get", "create", "update"])];
        plane.bind_role(NAMESPACE, "controller", rules).await.unwrap();
        let hour = Duration::from_hours(1);
        let token = plane.token_for_account(NAMESPACE, "controller", &[], hour).await.unwrap();
        Self { plane, token }
    }

    async fn client(&self, url: &str) -> Client {
        self.plane.client_for_token(url, &self.token).await.unwrap()
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.plane.client(), NAMESPACE)
    }

    /// When the lease was renewed last, as it says.
    async fn renewed(&self) -> SystemTime {
        self.leases().get(LEASE).await.unwrap().spec.unwrap().renew_time.unwrap().0.into()
    }

    /// Waits until a renewal has come and is so long ago that it was answered, but the next one is not due yet.
    async fn answered_renewal(&self, ago: Duration) {
        let before = self.renewed().await;
        let answered = async || {
            let last = self.renewed().await;
            (last != before && SystemTime::now() > last + ago).then_some(())
        };
        eventually(SOON, "a renewal that was answered", answered).await.unwrap();
    }

    async fn replica(&self, identity: &str, url: &str, timings: Timings) -> Replica {
        let api = Api::namespaced(self.client(url).await, NAMESPACE);
        let elector = Elector::new(api, LEASE.to_owned(), identity.to_owned(), timings);
        let shutdown = CancellationToken::new();
        let (guard, told) = (elector.guard(), elector.subscribe());
        let task = tokio::spawn(elector.run(shutdown.clone()));
        Replica { identity: identity.to_owned(), guard, told, shutdown, task: Some(task) }
    }
}

struct Replica {
    identity: String,
    guard: LeadershipGuard,
    told: watch::Receiver<Leadership>,
    shutdown: CancellationToken,
    task: Option<JoinHandle<Result<(), std::convert::Infallible>>>,
}

impl Replica {
    async fn told(&mut self, leading: bool) {
        let wait = self.told.wait_for(|told| told.leading == leading);
        let told = tokio::time::timeout(SOON, wait).await;
        let told = told.unwrap_or_else(|_| panic!("{}: not told leading={leading}", self.identity)).unwrap();
        assert!(!leading || told.holder.as_deref() == Some(self.identity.as_str()));
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.task.take().unwrap()).await.unwrap().unwrap().unwrap();
    }
}

/// Looks all the time who leads, and remembers if ever two did.
struct Watcher {
    seen: Arc<parking_lot::Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    both: bool,
    looks: u64,
    last: [Option<SystemTime>; 2],
}

impl Watcher {
    fn start(guards: [LeadershipGuard; 2]) -> Self {
        let seen = Arc::new(parking_lot::Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ticks = interval(LOOK);
            loop {
                ticks.tick().await;
                // Before it is asked: however late this task goes on, they led at that time or later.
                let asked = SystemTime::now();
                let leading = [guards[0].is_leader(), guards[1].is_leader()];
                let mut seen = noted.lock();
                seen.looks += 1;
                // Asked again: the first may have lost the lease, and the second won it, between the two questions.
                seen.both |= leading[0] && leading[1] && guards[0].is_leader();
                for (last, leading) in seen.last.iter_mut().zip(leading) {
                    if leading {
                        *last = Some(asked);
                    }
                }
            }
        });
        Self { seen, task }
    }

    fn last_led(&self, replica: usize) -> SystemTime {
        self.seen.lock().last[replica].unwrap()
    }

    fn finish(self) {
        self.task.abort();
        let seen = self.seen.lock();
        assert!(!seen.both, "two led at once");
        assert!(seen.looks > 100, "hardly ever looked: {}", seen.looks);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_before_the_next_one_starts() {
    let setup = Setup::new().await;
    let target = setup.plane.apiserver().address();
    let proxies = [TcpProxy::start(target).await.unwrap(), TcpProxy::start(target).await.unwrap()];
    let timings = timings(3000, 2000, 1000);
    let mut a = setup.replica("a-1", &proxies[0].https_url(), timings).await;
    a.told(true).await;
    let mut b = setup.replica("b-1", &proxies[1].https_url(), timings).await;
    let watcher = Watcher::start([a.guard.clone(), b.guard.clone()]);
    let (mut leader, mut other, mut cut) = (&mut a, &mut b, 0);
    // In the second mode the renewals arrive and only their answers are lost: the lease goes on, the leader must not.
    for mode in [ProxyMode::Blackhole, ProxyMode::BlackholeToClient, ProxyMode::Cut] {
        assert!(leader.guard.is_leader() && !other.guard.is_leader());
        // Answers take their time, which does not prolong what they grant.
        let slow_by = Duration::from_millis(400);
        let slow = ProxyMode::Delay { to_server: Duration::ZERO, to_client: slow_by };
        proxies[cut].set(slow).await.unwrap();
        setup.answered_renewal(slow_by + Duration::from_millis(200)).await;
        proxies[cut].set(mode).await.unwrap();
        // The word may come late, even after the next leader's. That no two lead at once is for the watcher to see.
        leader.told(false).await;
        assert!(!leader.guard.is_leader());
        // What the object says was written right before it was sent.
        let led_on = watcher.last_led(cut).duration_since(setup.renewed().await).unwrap();
        assert!(led_on <= timings.renew_deadline() + 5 * LOOK, "{mode:?}: led {led_on:?} after the last renewal");
        other.told(true).await;
        proxies[cut].set(ProxyMode::Pass).await.unwrap();
        (leader, other, cut) = (other, leader, 1 - cut);
    }
    watcher.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_given_back_is_taken_at_once() {
    let setup = Setup::new().await;
    let url = setup.plane.url().to_owned();
    // Nobody would live to see this lease expire.
    let timings = timings(600_000, 500_000, 250);
    let (mut a, mut b) = tokio::join!(setup.replica("a-1", &url, timings), setup.replica("b-1", &url, timings));
    // Both find no lease: one create succeeds.
    eventually(SOON, "a leader", async || (a.guard.is_leader() || b.guard.is_leader()).then_some(())).await.unwrap();
    if b.guard.is_leader() {
        std::mem::swap(&mut a, &mut b);
    }
    b.told.wait_for(|told| told.holder.as_deref() == Some(a.identity.as_str())).await.unwrap();
    assert!(a.guard.is_leader() && !b.guard.is_leader());

    let lease = setup.leases().get(LEASE).await.unwrap();
    let fields = lease.metadata.managed_fields.unwrap();
    assert_eq!(fields.iter().map(|f| f.manager.as_deref()).collect::<Vec<_>>(), [Some(FIELD_MANAGER)]);
    let label = json!({"metadata": {"labels": {"team": "x"}}});
    setup.leases().patch(LEASE, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();

    a.stop().await;
    assert!(!a.guard.is_leader());
    b.told(true).await;

    let lease = setup.leases().get(LEASE).await.unwrap();
    assert_eq!(lease.metadata.labels.unwrap()["team"], "x", "what others wrote stays");
    let spec = lease.spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some(b.identity.as_str()));
    assert_eq!(spec.lease_transitions, Some(1));

    b.stop().await;
    let spec = setup.leases().get(LEASE).await.unwrap().spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some(""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_do_to_the_lease() {
    let setup = Setup::new().await;
    let url = setup.plane.url().to_owned();
    let timings = timings(3000, 2000, 250);
    let mut a = setup.replica("a-1", &url, timings).await;
    a.told(true).await;
    let mut b = setup.replica("b-1", &url, timings).await;
    b.told.wait_for(|told| told.holder.as_deref() == Some("a-1")).await.unwrap();
    let watcher = Watcher::start([a.guard.clone(), b.guard.clone()]);

    // Deleted: the leader puts it back, and stays.
    let uid = setup.leases().get(LEASE).await.unwrap().metadata.uid;
    setup.leases().delete(LEASE, &DeleteParams::default()).await.unwrap();
    let holder = eventually(SOON, "the lease is back", async || {
        let lease = setup.leases().get_opt(LEASE).await.unwrap()?;
        (lease.metadata.uid != uid).then(|| lease.spec.unwrap().holder_identity.unwrap())
    });
    assert_eq!(holder.await.unwrap(), "a-1");
    assert!(a.guard.is_leader());

    // Given to somebody who does not exist: the leader stops, and the lease expires.
    let stranger = json!({"spec": {"holderIdentity": "nobody"}});
    setup.leases().patch(LEASE, &PatchParams::default(), &Patch::Merge(stranger)).await.unwrap();
    a.told(false).await;
    eventually(SOON, "a leader", async || (a.guard.is_leader() || b.guard.is_leader()).then_some(())).await.unwrap();

    // A process that dies leads no more, not even in what is left of it.
    let (dying, other) = if a.guard.is_leader() { (&mut a, &mut b) } else { (&mut b, &mut a) };
    let task = dying.task.take().unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(!dying.guard.is_leader());
    other.told(true).await;
    watcher.finish();
    other.stop().await;

    // Made by others, without a holder and with a duration of nonsense: it is taken over.
    setup.leases().delete(LEASE, &DeleteParams::default()).await.unwrap();
    let odd =
        json!({"metadata": {"name": LEASE}, "spec": {"holderIdentity": "", "leaseDurationSeconds": 2_000_000_000}});
    let odd: Lease = serde_json::from_value(odd).unwrap();
    setup.leases().create(&PostParams::default(), &odd).await.unwrap();
    let mut c = setup.replica("c-1", &url, timings).await;
    c.told(true).await;
    c.stop().await;
}
