//! The API server's clock, which each of its answers shows.

use std::sync::Arc;
use std::time::Duration;

use http::header::DATE;
use http::{HeaderMap, Request};
use jiff::fmt::rfc2822::DateTimeParser;
use kube::client::Body;
use parking_lot::Mutex;
use tower::service_fn;

use super::store::now;
use crate::core::expiry::WallTime;
use crate::core::server_clock::ServerClock;

/// The same client, which notes in `clock` what answers show. kube hands on no header of an answer.
pub(super) fn noting(client: kube::Client, clock: Arc<Mutex<ServerClock>>) -> kube::Client {
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |request: Request<Body>| {
        let (client, clock) = (client.clone(), clock.clone());
        async move {
            let sent = now();
            let response = client.send(request).await?;
            if let Some(shown) = date(response.headers()) {
                let answered = now();
                clock.lock().read(shown, answered, answered.saturating_since(sent));
            }
            Ok::<_, kube::Error>(response)
        }
    });
    kube::Client::new(service, namespace)
}

/// When an answer was given.
fn date(headers: &HeaderMap) -> Option<WallTime> {
    let shown = DateTimeParser::new().parse_timestamp(headers.get(DATE)?.as_bytes()).ok()?;
    u64::try_from(shown.as_second()).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_answer_tells_the_time_in_whole_seconds_or_not_at_all() {
        let of = |date: &'static str| super::date(&HeaderMap::from_iter([(DATE, HeaderValue::from_static(date))]));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(784_111_777)));
        assert_eq!(of("soon"), None);
        assert_eq!(super::date(&HeaderMap::new()), None);
    }
}
