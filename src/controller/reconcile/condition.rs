//! What a session's status says, and in which words.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use crate::api::{CONDITION_SYNCED, LastEviction, SyncedReason};
use crate::controller::ledger::progress::{Eviction, Verdict};
use crate::controller::ledger::standing::Standing;

/// Pods as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// How many hold a copy.
    pub holding: usize,
    /// How many were told to drop theirs and have not acknowledged it.
    pub awaited: usize,
}

/// The fields of the status that say `verdict` of `generation`. What is not named stays as it is.
pub fn fields(
    generation: u64,
    verdict: &Verdict,
    pods: Pods,
    standing: Option<&Standing>,
    now: Timestamp,
) -> Map<String, Value> {
    let (reason, message) = words(verdict, pods);
    let before = standing.and_then(|standing| standing.synced);
    let status = reason.status();
    // The time of the last transition is that of the status, not of the reason.
    let since = before.filter(|before| before.status == Some(status == "True")).map_or(now, |before| before.since);
    let mut conditions: Vec<Value> = standing.into_iter().flat_map(Standing::others).collect();
    conditions.push(json!({
        "type": CONDITION_SYNCED,
        "status": status,
        "reason": reason.as_str(),
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": Time(whole_seconds(since)),
    }));
    let mut fields = Map::new();
    fields.insert("observedGeneration".to_owned(), generation.into());
    fields.insert("conditions".to_owned(), conditions.into());
    if let Verdict::Settled(Some(eviction)) = verdict
        && let Ok(value) = serde_json::to_value(last_eviction(eviction))
    {
        fields.insert("lastEviction".to_owned(), value);
    }
    fields
}

/// The field that says when the session was used last.
pub fn last_renewal(used: std::time::Duration) -> Map<String, Value> {
    let seconds = i64::try_from(used.as_secs()).unwrap_or(i64::MAX);
    let used = Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH));
    Map::from_iter([("lastRenewTime".to_owned(), json!(used))])
}

fn last_eviction(eviction: &Eviction) -> LastEviction {
    LastEviction {
        generation: i64::try_from(eviction.generation).unwrap_or(i64::MAX),
        time: Time(whole_seconds(eviction.at)),
        pods: u32::try_from(eviction.pods).unwrap_or(u32::MAX),
        changed_keys: eviction.keys.iter().map(ToString::to_string).collect(),
    }
}

/// The API keeps whole seconds of these times.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn words(verdict: &Verdict, pods: Pods) -> (SyncedReason, String) {
    match verdict {
        Verdict::Waiting => {
            let message = match pods.awaited {
                0 => "waiting for pods to confirm that they have dropped their old copies".to_owned(),
                1 => "1 pod has not confirmed that it has dropped its old copy".to_owned(),
                pods => format!("{pods} pods have not confirmed that they have dropped their old copies"),
            };
            (SyncedReason::WaitingForPods, message)
        }
        Verdict::Settled(Some(eviction)) => {
            let dropped = match eviction.pods {
                1 => "1 pod dropped its old copy".to_owned(),
                pods => format!("{pods} pods dropped their old copies"),
            };
            let message = match eviction.silent {
                0 => dropped,
                1 => format!("{dropped}; 1 of them did not answer, but its lease has ended"),
                silent => format!("{dropped}; {silent} of them did not answer, but their leases have ended"),
            };
            (SyncedReason::AllPodsCurrent, message)
        }
        Verdict::Settled(None) => match pods.holding {
            0 => (SyncedReason::NoHolders, "no pod holds a copy".to_owned()),
            1 => (SyncedReason::AllPodsCurrent, "1 pod holds a copy, and it is current".to_owned()),
            pods => (SyncedReason::AllPodsCurrent, format!("{pods} pods hold copies, and all are current")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::VmcpSessionStatus;
    use crate::controller::object::Status;

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    fn eviction(pods: usize, silent: usize) -> Verdict {
        Verdict::Settled(Some(Eviction { generation: 2, pods, silent, keys: vec!["a".into(), "b".into()], at: now() }))
    }

    fn said(verdict: &Verdict, pods: Pods) -> (String, String, String) {
        let fields = fields(3, verdict, pods, None, now());
        let condition = &fields["conditions"][0];
        let word = |name: &str| condition[name].as_str().unwrap().to_owned();
        (word("status"), word("reason"), word("message"))
    }

    #[test]
    fn it_says_in_plain_words_how_things_stand() {
        let holding = |holding| Pods { holding, awaited: 0 };
        let awaited = |awaited| Pods { holding: 9, awaited };
        let cases = [
            (Verdict::Settled(None), holding(0), "True", "NoHolders", "no pod holds a copy"),
            (Verdict::Settled(None), holding(1), "True", "AllPodsCurrent", "1 pod holds a copy, and it is current"),
            (Verdict::Settled(None), holding(2), "True", "AllPodsCurrent", "2 pods hold copies, and all are current"),
            (eviction(1, 0), holding(0), "True", "AllPodsCurrent", "1 pod dropped its old copy"),
            (
                eviction(3, 1),
                holding(0),
                "True",
                "AllPodsCurrent",
                "3 pods dropped their old copies; 1 of them did not answer, but its lease has ended",
            ),
            (
                Verdict::Waiting,
                awaited(1),
                "False",
                "WaitingForPods",
                "1 pod has not confirmed that it has dropped its old copy",
            ),
        ];
        for (verdict, pods, status, reason, message) in cases {
            assert_eq!(said(&verdict, pods), (status.to_owned(), reason.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn the_fields_are_those_of_the_resource() {
        let fields = fields(3, &eviction(2, 0), Pods::default(), None, now());
        let status: VmcpSessionStatus = serde_json::from_value(fields.into()).unwrap();
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.conditions[0].observed_generation, Some(3));
        let evicted = status.last_eviction.unwrap();
        assert_eq!((evicted.generation, evicted.pods), (2, 2));
        assert_eq!(evicted.changed_keys, ["a", "b"]);
        assert_eq!(serde_json::to_value(evicted.time).unwrap(), NOW);
        let renewed = last_renewal(std::time::Duration::from_millis(1_500));
        assert_eq!(renewed["lastRenewTime"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_transition_is_one_of_the_status_only() {
        let before = |status: &str| {
            let status: Status = serde_json::from_value(json!({"observedGeneration": 2, "conditions": [
                {"type": "Other", "status": "True", "reason": "R", "message": "", "lastTransitionTime": NOW},
                {"type": "Synced", "status": status, "reason": "R", "message": "", "observedGeneration": 2,
                 "lastTransitionTime": "2020-01-01T00:00:00Z"},
            ]}))
            .unwrap();
            Standing::of(&status)
        };
        for (status, since) in [("True", "2020-01-01T00:00:00Z"), ("False", NOW), ("Unknown", NOW)] {
            let fields = fields(3, &Verdict::Settled(None), Pods::default(), Some(&before(status)), now());
            assert_eq!(fields["conditions"][1]["lastTransitionTime"], since, "{status}");
            assert_eq!(fields["conditions"][0]["type"], "Other", "it is not ours to remove");
            assert!(!fields.contains_key("lastEviction"), "the former one stays");
        }
    }
}
