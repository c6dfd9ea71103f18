//! What a hit costs.

use std::hint::black_box;

use futures::FutureExt;
use vmcp_session::cache::CreateOptions;

use super::{cache, cached, map, with_controllers};

const HITS: u64 = 1_000;

/// Allocations of this thread only are counted, so that what the streams do meanwhile is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_hit_allocates_nothing() {
    let cluster = with_controllers(2).await;
    let cache = cache(&cluster, "a").await;
    cache.create("s", map([("backends", "weather")]), CreateOptions::default()).await.unwrap();
    cached(&cache, "s").await;

    let mut hits = 0;
    let hit = allocation_counter::measure(|| {
        hits = (0..HITS).filter(|_| black_box(cache.hit("s")).is_some()).count() as u64;
    });
    assert_eq!(hits, HITS, "a lease ran out");
    assert_eq!(hit.count_total, 0, "allocations of {HITS} hits");

    // The same by the way that everybody takes.
    let get = allocation_counter::measure(|| {
        hits = (0..HITS).filter(|_| matches!(black_box(cache.get("s").now_or_never()), Some(Ok(_)))).count() as u64;
    });
    assert_eq!(hits, HITS, "a lease ran out");
    assert_eq!(get.count_total, 0, "allocations of {HITS} gets");

    // That the counter counts at all.
    assert!(allocation_counter::measure(|| drop(black_box(vec![0u8; 64]))).count_total > 0);
}
