//! Misses against an API server that refuses quickly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{StatusCode, header};
use tokio::net::TcpListener;

use crate::cache::{Cache, CacheConfig, GetError};

/// An API server that answers every request like this, and counts them.
async fn refusing(code: u16) -> (Cache, Arc<AtomicUsize>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let answer = move || async move {
        seen.fetch_add(1, Ordering::Relaxed);
        let body = format!(r#"{{"kind":"Status","status":"Failure","code":{code},"reason":"","message":""}}"#);
        (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body)
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
    // As the real client has it.
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let config = CacheConfig {
        unknown_per_second: 1,
        unknown_burst: 10,
        concurrent_gets: 10,
        call_deadline: Duration::from_millis(500),
        ..CacheConfig::new("ns", "pod")
    };
    (Cache::connect(client, config).unwrap(), asked)
}

#[tokio::test]
async fn a_flood_of_unknown_names_is_bounded_also_when_the_api_server_refuses_it_at_once() {
    for code in [403, 429, 500] {
        let (cache, asked) = refusing(code).await;
        let mut refused = 0;
        for n in 0..300 {
            match cache.get(&format!("unknown-{n}")).await {
                Err(GetError::TooManyUnknown) => refused += 1,
                Err(GetError::Unavailable { .. }) => {}
                other => panic!("{code}: {other:?}"),
            }
        }
        let asked = asked.load(Ordering::Relaxed);
        // Three attempts for each of the burst, and for what came to be free meanwhile.
        assert!(asked <= 3 * 20, "{code}: {asked} requests reached the API server");
        assert!(refused > 200, "{code}: only {refused} were refused");
    }
}
