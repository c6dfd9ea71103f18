use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);

fn options(mode: Mode) -> Options {
    Options { mode, no_loop: false, redirect: None }
}

fn by_prefix(prefixes: &[&'static str]) -> Options {
    let prefixes = prefixes.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
    options(Mode::Broadcast { prefixes })
}

fn told(recipients: &[Recipient]) -> Vec<u64> {
    let mut told: Vec<u64> = recipients.iter().map(|r| r.client.0).collect();
    told.sort_unstable();
    told
}

fn at(nanos: u64) -> Time {
    Time::from_nanos(nanos)
}

#[test]
fn a_writer_that_hears_nothing_of_itself_hears_of_what_came_between_its_write_and_the_answer() {
    for everything in [false, true] {
        let mut table = Table::new(10);
        table.enable(A, Options { no_loop: true, ..options(Mode::Default) });
        table.writing(A, b"k");
        let recipients = if everything { table.flush() } else { table.stale(b"k") };
        assert_eq!(told(&recipients).is_empty(), !everything, "it has read nothing yet");
        let (recipients, keeps) = table.wrote(A, b"k");
        assert!(told(&recipients) == [1] && !keeps, "{recipients:?}");
        // The next write of the same command is another one.
        assert!(table.wrote(A, b"k").1);
    }
}

#[test]
fn who_has_read_a_key_is_told_once() {
    let mut table = Table::new(10);
    table.enable(A, options(Mode::Default));
    table.enable(B, options(Mode::Default));
    table.reading(A, b"k");
    table.reading(A, b"k");
    table.reading(C, b"k");
    assert_eq!((table.keys(), table.readers()), (1, 1), "who does not track is not remembered");
    assert_eq!(told(&table.stale(b"k")), [1]);
    assert_eq!(told(&table.stale(b"k")), [] as [u64; 0]);
    assert_eq!((table.keys(), table.readers()), (0, 0));
}

#[test]
fn who_writes_is_spared_only_if_it_wants_to_be_and_stays_registered() {
    let mut table = Table::new(10);
    table.enable(A, Options { no_loop: true, ..options(Mode::Default) });
    table.enable(B, options(Mode::Default));
    for client in [A, B] {
        table.reading(client, b"k");
    }
    let (recipients, keeps) = table.wrote(A, b"k");
    assert_eq!((told(&recipients), keeps), (vec![2], true));
    table.reading(A, b"k");
    table.reading(B, b"k");
    let (recipients, keeps) = table.wrote(B, b"k");
    assert_eq!((told(&recipients), keeps), (vec![1, 2], false), "that somebody else has changed it, A is told");
}

#[test]
fn a_write_is_told_of_when_it_takes_effect_and_by_prefix_only_once() {
    let mut table = Table::new(10);
    table.enable(A, Options { no_loop: true, ..options(Mode::Default) });
    table.enable(B, options(Mode::Default));
    table.enable(C, by_prefix(&[""]));
    let begin = |table: &mut Table| {
        for client in [A, B] {
            table.reading(client, b"k");
        }
        table.writing(A, b"k");
        told(&table.disturbed(b"k"))
    };
    assert_eq!(begin(&mut table), [2, 3]);
    assert_eq!(told(&table.wrote(A, b"k").0), [] as [u64; 0]);
    assert_eq!(table.done(A, b"k"), None);

    // It took effect, but was not answered as done: what A has is not what it wrote.
    assert_eq!(begin(&mut table), [2, 3]);
    assert_eq!(table.done(A, b"k").map(|r| r.client), Some(A));

    // Nothing came of it.
    table.reading(A, b"k");
    table.writing(A, b"k");
    assert_eq!(table.done(A, b"k"), None);
    assert_eq!(told(&table.stale(b"k")), [1, 3]);
    assert!(table.writing.is_empty());
    // Of two writers, it may have been the other one.
    table.reading(A, b"k");
    table.writing(A, b"k");
    table.writing(B, b"k");
    assert_eq!(told(&table.disturbed(b"k")), [1, 3]);
    table.done(A, b"k");
    table.done(B, b"k");
    // Somebody else's write spares nobody.
    table.reading(A, b"k");
    assert_eq!(told(&table.disturbed(b"k")), [1, 3]);
}

#[test]
fn prefixes_decide_for_those_who_track_by_them() {
    let mut table = Table::new(10);
    table.enable(A, by_prefix(&["a:", "b:"]));
    table.enable(B, by_prefix(&[""]));
    table.enable(C, Options { no_loop: true, redirect: Some(ClientId(9)), ..by_prefix(&["a:"]) });
    assert_eq!(told(&table.stale(b"a:1")), [1, 2, 3]);
    assert_eq!(told(&table.stale(b"c:1")), [2]);
    assert_eq!(told(&table.wrote(C, b"a:1").0), [1, 2]);
    // What it has read outside of its prefixes is nothing that it would keep.
    table.reading(A, b"c:1");
    assert_eq!(told(&table.stale(b"c:1")), [2]);
    // One that it is told of anyhow, it is told of once.
    table.reading(A, b"a:1");
    let told = table.stale(b"a:1");
    assert_eq!(told.iter().filter(|r| r.client == A).count(), 1);
    assert!(told.contains(&Recipient { client: C, redirect: Some(ClientId(9)) }));
    assert_eq!(table.prefixes(), 4);
}

#[test]
fn only_what_is_asked_for_is_registered() {
    assert!(options(Mode::Default).registers(false));
    assert!(by_prefix(&["a"]).registers(false));
    assert!(!options(Mode::OptIn).registers(false) && options(Mode::OptIn).registers(true));
    assert!(options(Mode::OptOut).registers(false) && !options(Mode::OptOut).registers(true));
}

#[test]
fn what_was_never_covered_is_over_at_once_and_for_that_client_only() {
    let mut table = Table::new(10);
    table.enable(A, options(Mode::Default));
    table.enable(B, options(Mode::Default));
    table.reading(A, b"k");
    table.reading(B, b"k");
    assert_eq!(table.uncovered(A, b"k").map(|r| r.client), Some(A));
    assert_eq!(told(&table.stale(b"k")), [2]);
    table.reading(A, b"k");
    table.uncovered(A, b"k");
    assert_eq!(table.keys(), 0, "nothing stays behind");
}

#[test]
fn cover_is_looked_at_when_it_may_end_and_when_it_was_extended_later() {
    let mut table = Table::new(10);
    table.enable(A, options(Mode::Default));
    for (key, until) in [(b"a", 10), (b"b", 20), (b"c", 30)] {
        table.reading(A, key);
        table.read(key, at(until));
    }
    table.read(b"c", at(40));
    let due = |table: &Table, by| {
        let (keys, next) = table.due(0, at(by));
        let keys: Vec<String> = keys.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect();
        (keys.concat(), next)
    };
    assert_eq!(due(&table, 9), (String::new(), at(10)));
    assert_eq!(due(&table, 20), ("ab".into(), at(30)));
    table.extend(b"a", at(10), at(50));
    // That was what had been read before.
    table.extend(b"b", at(10), at(60));
    assert_eq!(due(&table, 30), ("bc".into(), at(50)));
    assert_eq!(told(&table.flush()), [1]);
    assert_eq!(due(&table, 99), (String::new(), NEVER));
    assert_eq!(table.parts(), 0);
}

#[test]
fn who_is_gone_is_not_told_and_the_last_one_takes_everything_along() {
    let mut table = Table::new(10);
    table.enable(A, options(Mode::Default));
    table.enable(B, by_prefix(&[""]));
    table.reading(A, b"k");
    table.disable(A);
    assert_eq!(told(&table.stale(b"k")), [2]);
    table.reading(B, b"l");
    table.disable(B);
    assert_eq!((table.clients(), table.keys(), table.prefixes()), (0, 0, 0));
}

proptest! {
    /// Whatever happens, the table stays within its bounds, and a client whose registration is gone was told so.
    #[test]
    fn nobody_keeps_what_the_table_has_forgotten(
        steps in prop::collection::vec((0_u8..6, 1_u64..6, 0_u8..12), 1..200),
    ) {
        let mut table = Table::new(4);
        let mut kept: BTreeMap<u64, BTreeSet<u8>> = BTreeMap::new();
        for client in 1..6 {
            let no_loop = client == 5;
            table.enable(ClientId(client), Options { no_loop, ..options(Mode::Default) });
            kept.insert(client, BTreeSet::new());
        }
        let drop = |kept: &mut BTreeMap<u64, BTreeSet<u8>>, key: u8, told: &[Recipient]| {
            for recipient in told {
                kept.get_mut(&recipient.client.0).unwrap().remove(&key);
            }
        };
        for (step, client, key) in steps {
            let id = ClientId(client);
            match step {
                0..=2 => {
                    let forgotten = table.reading(id, &[key]);
                    kept.get_mut(&client).unwrap().insert(key);
                    for (key, told) in forgotten {
                        drop(&mut kept, key[0], &told);
                    }
                }
                3 => {
                    let (told, keeps) = table.wrote(id, &[key]);
                    drop(&mut kept, key, &told);
                    if !keeps {
                        continue;
                    }
                    kept.get_mut(&client).unwrap().insert(key);
                    for (key, told) in table.reading(id, &[key]) {
                        drop(&mut kept, key[0], &told);
                    }
                }
                4 => {
                    let told = table.stale(&[key]);
                    drop(&mut kept, key, &told);
                }
                _ => {
                    let told: Vec<Recipient> = table.uncovered(id, &[key]).into_iter().collect();
                    drop(&mut kept, key, &told);
                }
            }
            prop_assert!(table.keys() <= 4 && table.readers() <= 16);
            prop_assert_eq!(table.slots.iter().map(|s| s.readers.len()).sum::<usize>(), table.readers());
            for (at, slot) in table.slots.iter().enumerate() {
                prop_assert_eq!(table.index[&slot.key], at);
                prop_assert!(slot.readers.is_sorted());
            }
            for (client, keys) in &kept {
                for key in keys {
                    let at = table.index.get(&[*key][..]);
                    let known = at.is_some_and(|at| table.slots[*at].readers.contains(&ClientId(*client)));
                    prop_assert!(known, "client {} keeps {} and nobody knows", client, key);
                }
            }
        }
    }
}
