use serde_json::json;

use super::*;
use crate::controller::object::{Reader, Watched};
use crate::controller::shared::Witness;
use crate::controller::tests::Nobody;
use crate::core::expiry::Expired;
use crate::core::replica::Fact;
use crate::core::session_ref::SessionRef;

const LEASE: Duration = Duration::from_secs(15);
const UID: &str = "0189ab00-0000-4000-8000-00000000beef";

fn ledger() -> Ledger {
    Ledger::new("own", LEASE, Duration::from_secs(5), Box::new(Nobody))
}

fn key() -> SessionKey {
    SessionKey::new("ns", "s")
}

fn uid() -> Uid {
    UID.parse().unwrap()
}

/// A session whose status speaks of generation `observed`.
fn read(generation: u64, observed: u64) -> Read {
    let condition = json!({"type": "Synced", "status": "True", "reason": "NoHolders", "message": "",
        "observedGeneration": observed, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let watched: Watched = serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "s", "uid": UID, "generation": generation, "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"metadata": {}, "idleTimeoutSeconds": 60},
        "status": {"observedGeneration": observed, "conditions": [condition]},
    }))
    .unwrap();
    Reader::new("vmcp-system", "vmcp-system").read(watched).unwrap()
}

fn facts(generation: u64, new: bool) -> Vec<Fact> {
    let (key, uid) = (key(), uid());
    let resource_version = ResourceVersion(7);
    let changed = Fact::Changed { key: key.clone(), uid, generation, resource_version, changed_keys: Vec::new(), new };
    let settled = Fact::Settled(Settled {
        key,
        uid,
        object: Some(uid),
        generation: Some(generation),
        changed_keys: Vec::new(),
        pods: Vec::new(),
        silent: Vec::new(),
        took: Duration::ZERO,
    });
    vec![changed, settled]
}

fn relisted(ledger: &Ledger, reads: Vec<Read>) {
    let objects: Vec<_> = reads.into_iter().map(|read| (read.object.key, read.terms, read.marker)).collect();
    ledger.relisted(None, objects.into());
}

fn due(ledger: &Ledger) -> Option<u64> {
    ledger.next_due().map(|(due, _)| due.generation)
}

#[test]
fn a_list_that_comes_after_its_facts_holds_nothing_back() {
    let ledger = ledger();
    ledger.witness(facts(1, true));
    assert_eq!(due(&ledger), None, "nothing is known of its status yet");
    relisted(&ledger, vec![read(1, 0)]);
    assert_eq!(due(&ledger), Some(1));
    assert_eq!(due(&ledger), None);
}

/// Sessions of a day that is long over by this machine's clock, which may be wrong.
#[test]
fn a_lifetime_ends_by_the_api_servers_clock() {
    let ledger = ledger();
    let created = since_epoch("2026-01-01T00:00:00Z".parse().unwrap());
    let mut limited = read(1, 0);
    limited.terms.as_mut().unwrap().max_lifetime = Some(Duration::from_mins(1));
    ledger.observed(&limited);
    assert_eq!(ledger.expired(None, 9), [], "no answer has shown what time it is");
    assert!(ledger.to_persist(9).is_empty());
    assert_eq!(ledger.clock_off_by(), Duration::ZERO);
    let off = ledger.server_time(created + Duration::from_secs(50), now());
    assert!(off > Duration::from_hours(24), "{off:?}");
    assert_eq!(ledger.expired(None, 9), []);
    ledger.server_time(created + Duration::from_secs(62), now());
    let session = SessionRef { key: key(), uid: uid() };
    assert_eq!(ledger.expired(None, 9), [(session, ResourceVersion(7), Expired::Lifetime)]);
    assert!(ledger.server_time(wall(), now()) < Duration::from_secs(1));
}

#[test]
fn what_is_dated_is_dated_by_the_clock_that_is_behind() {
    let (ledger, hour) = (ledger(), Duration::from_hours(1));
    let is_about = |time: WallTime| {
        let found = ledger.prudent_time();
        assert!(found.abs_diff(time) < Duration::from_secs(30), "{found:?} for {time:?}");
    };
    is_about(wall());
    ledger.server_time(wall().saturating_sub(hour), now());
    is_about(wall().saturating_sub(hour));
    ledger.server_time(wall() + hour, now());
    is_about(wall());
}

#[test]
fn what_the_status_says_already_is_not_said_again() {
    let ledger = ledger();
    ledger.witness(facts(1, true));
    relisted(&ledger, vec![read(1, 1)]);
    assert_eq!(due(&ledger), None);
    ledger.observed(&read(1, 1));
    ledger.witness(facts(1, true));
    assert_eq!(ledger.depths().behind, 0);
    ledger.observed(&read(2, 1));
    ledger.witness(facts(2, false));
    assert_eq!(due(&ledger), Some(2));
    ledger.observed(&read(2, 2));
    assert_eq!(ledger.depths().behind, 0);
    ledger.sweep();
    assert_eq!(ledger.depths().behind, 0);
    ledger.observed(&read(2, 0));
    ledger.sweep();
    assert_eq!(due(&ledger), Some(2), "somebody has removed it");
}

#[test]
fn what_was_offered_while_leading_before_is_offered_again() {
    let ledger = ledger();
    ledger.lead(true);
    ledger.observed(&read(1, 0));
    ledger.witness(facts(1, true));
    assert_eq!(due(&ledger), Some(1));
    // Whatever waited to be written when the lease was lost was dropped.
    ledger.lead(false);
    ledger.lead(true);
    assert_eq!(due(&ledger), Some(1));
    assert_eq!(due(&ledger), None);
}

#[test]
fn what_is_not_listed_any_more_is_forgotten() {
    let ledger = ledger();
    ledger.observed(&read(1, 0));
    ledger.witness(facts(1, true));
    ledger.renewed(&key(), uid(), Duration::ZERO).unwrap();
    assert_eq!(ledger.depths(), Depths { behind: 1, terminating: 0, timeouts: 1, renewals: 1 });
    ledger.removed(&key());
    assert_eq!(ledger.depths(), Depths::default());
    ledger.observed(&read(1, 0));
    ledger.witness(facts(1, true));
    relisted(&ledger, Vec::new());
    assert_eq!(ledger.depths(), Depths::default());
    assert!(ledger.session(&key()).is_none());
}

#[test]
fn whoever_leads_gives_no_renewals_away() {
    let ledger = ledger();
    ledger.observed(&read(1, 0));
    let turn = ledger.begin_taking();
    let whole = ledger.take_renewed(turn).unwrap();
    assert_eq!(whole.len(), 1, "all of which a use is known");
    ledger.renewed(&key(), uid(), Duration::from_secs(3)).unwrap();
    let taken = ledger.take_renewed(turn).unwrap();
    assert_eq!((&taken[0].0, taken[0].1, taken[0].2.as_secs()), (&key(), uid(), 3));
    ledger.renewed(&key(), uid(), Duration::ZERO).unwrap();
    ledger.lead(true);
    assert_eq!(ledger.take_renewed(turn), None);
    assert_eq!(ledger.depths().renewals, 0);
    assert_eq!(ledger.take_renewed(ledger.begin_taking()), None, "nobody else hears everything now");
    ledger.renewed(&key(), uid(), Duration::ZERO).unwrap();
    assert_eq!(ledger.depths().renewals, 0, "they are for itself");
    ledger.lead(false);
    assert_eq!(ledger.take_renewed(turn), None, "the stream is from before");
    // A stream that is opened anew begins with all that is known, since what was on the one before may be lost.
    let turn = ledger.begin_taking();
    let known = ledger.take_renewed(turn).unwrap();
    assert_eq!((known.len(), &known[0].0), (1, &key()));
    assert_eq!(ledger.take_renewed(turn), Some(Vec::new()));
}
