//! The watch against an API server that fails, and one that is silent.

use super::*;
use crate::controller::tests::Nobody;
use crate::core::replica::{Config, Found, Replica};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::json;

/// A watch of an API server that does not exist.
fn watch(patience: Duration) -> Watch {
    let replica = Replica::new(Config::default(), &[]);
    let scope = replica.scopes().next().unwrap().0;
    let second = Duration::from_secs(1);
    let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
    Watch {
        client: Client::try_from(kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"))).unwrap(),
        scope,
        namespace: None,
        labels: "",
        shared: Arc::new(Shared::new(replica, ledger.clone())),
        ledger,
        reader: Arc::default(),
        distrust: Arc::default(),
        patience,
        room: Arc::new(Semaphore::new(1)),
    }
}

/// An API server with so many sessions of so many bytes, which `fails` when so many are asked for the n-th time. It
/// notes how many were.
async fn serve(
    count: u32,
    bytes: fn(u32) -> usize,
    fails: impl Fn(usize, u32) -> Option<Response> + Clone + Send + Sync + 'static,
) -> (Client, Arc<Mutex<Vec<u32>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    let answer = move |uri: http::Uri| async move {
        let number = |name: &str| {
            let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse::<u32>().ok())
        };
        let (limit, from) = (number("limit").unwrap_or(0), number("continue").unwrap_or(0));
        let nth = {
            let mut noted = noted.lock();
            noted.push(limit);
            noted.len()
        };
        if let Some(failure) = fails(nth, limit) {
            return failure;
        }
        let to = count.min(from + limit);
        // Written by hand: many megabytes, which an API server sends much faster than a debug build would encode them.
        let items: Vec<String> = (from..to)
            .map(|n| {
                let (id, value) = (format!("00000000-0000-0000-0000-{n:012}"), "x".repeat(bytes(n)));
                format!(
                    r#"{{"metadata": {{"namespace": "ns", "name": "s{n}", "uid": "{id}", "generation": 1,
                    "resourceVersion": "5"}}, "spec": {{"metadata": {{"k": "{value}"}}}}}}"#
                )
            })
            .collect();
        let next = if to < count { to.to_string() } else { String::new() };
        let list = json!({"kind": "List", "apiVersion": "v1", "items": [],
            "metadata": {"resourceVersion": "9", "continue": next}});
        let list = list.to_string().replace("[]", &format!("[{}]", items.join(",")));
        list.into_response()
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let mut config = kube::Config::new(uri);
    // As the real client has it.
    config.default_retry = false;
    (Client::try_from(config).unwrap(), asked)
}

/// Whoever may write sessions decides how large they are.
#[tokio::test]
async fn a_page_of_large_sessions_behind_small_ones_is_not_read_to_its_end() {
    let (client, asked) = serve(160, |n| if n < 100 { 1 } else { 1_000_000 }, |_, _| None).await;
    let watch = Watch { client, ..watch(Duration::from_hours(1)) };
    watch.list(&mut Paging::default()).await.unwrap();
    assert_eq!(watch.shared.with(|replica, _| replica.sessions()), 160);
    assert_eq!(*asked.lock(), [100, 500, 250, 125, 62, 31, 16, 16]);
}

#[tokio::test]
async fn a_list_of_large_sessions_comes_in_pages_that_the_api_server_can_send() {
    let fails = |_, limit| (limit > 10).then(|| http::StatusCode::GATEWAY_TIMEOUT.into_response());
    let (client, asked) = serve(30, |_| 1_000_000, fails).await;
    let watch = Watch { client, ..watch(Duration::from_hours(1)) };
    watch.list(&mut Paging::default()).await.unwrap();
    assert_eq!(watch.shared.with(|replica, _| replica.sessions()), 30);
    assert_eq!(*asked.lock(), [100, 50, 25, 12, 6, 11, 5, 10, 10]);
}

/// Many namespaces are listed at once when a controller starts.
#[tokio::test]
async fn a_page_is_read_when_there_is_room_for_it_and_may_wait_for_that() {
    let rest_may_come = Arc::new(Notify::new());
    let awaited = rest_may_come.clone();
    let slow = move |nth, _| {
        let awaited = awaited.clone();
        let rest = async move {
            awaited.notified().await;
            r#"], "metadata": {"resourceVersion": "9", "continue": "100"}}"#
        };
        let body = stream::iter([r#"{"items": ["#]).chain(stream::once(rest)).map(Ok::<_, std::io::Error>);
        (nth == 1).then(|| Response::new(Body::from_stream(body)))
    };
    let (client, asked) = serve(150, |_| 1, slow).await;
    let watch = Watch { client, ..watch(Duration::from_secs(2)) };
    let others = watch.room.clone().acquire_owned().await.unwrap();
    let mut paging = Paging::default();
    let mut list = std::pin::pin!(watch.list(&mut paging));
    // Longer than a page may take.
    assert!(timeout(Duration::from_secs(3), &mut list).await.is_err(), "there is no room");
    assert_eq!(*asked.lock(), [100]);
    drop(others);
    assert!(timeout(Duration::from_millis(200), &mut list).await.is_err(), "the rest may take its time from now on");
    assert_eq!(watch.room.available_permits(), 0);
    rest_may_come.notify_one();
    list.await.unwrap();
    assert_eq!(*asked.lock(), [100, 100]);
    let page = watch.page(&ListParams::default().limit(1), Paging::default()).await.unwrap();
    assert_eq!(watch.room.available_permits(), 0, "its objects are yet to be taken out");
    drop(page);
    assert_eq!(watch.room.available_permits(), 1);
}

#[tokio::test]
async fn what_was_listed_before_all_came_into_doubt_does_not_count() {
    let watch = watch(Duration::from_hours(1));
    let shared = watch.shared.clone();
    let doubted = move |nth, _| {
        if nth == 2 {
            shared.with(|replica, _| replica.void());
        }
        None
    };
    let (client, asked) = serve(800, |_| 1, doubted).await;
    let watch = Watch { client, ..watch };
    let listed = watch.list(&mut Paging::default()).await;
    assert!(matches!(listed, Err(WatchError::Doubted)), "{listed:?}");
    assert_eq!((watch.shared.with(|replica, _| replica.sessions()), asked.lock().len()), (0, 2));
    watch.list(&mut Paging::default()).await.unwrap();
    assert_eq!(watch.shared.with(|replica, _| replica.sessions()), 800);
}

#[tokio::test]
async fn a_page_that_does_not_come_at_once_costs_none_of_those_before_it() {
    let fails = |nth, _| match nth {
        2 => Some(http::StatusCode::TOO_MANY_REQUESTS.into_response()),
        // The connection breaks in the middle of the page.
        3 => {
            let broken = [Ok(r#"{"items": ["#), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
            Some(Response::new(Body::from_stream(stream::iter(broken))))
        }
        _ => None,
    };
    let (client, asked) = serve(150, |_| 1, fails).await;
    let watch = Watch { client, ..watch(Duration::from_hours(1)) };
    watch.list(&mut Paging::default()).await.unwrap();
    assert_eq!(watch.shared.with(|replica, _| replica.sessions()), 150);
    assert_eq!(*asked.lock(), [100, 500, 500, 500]);
}

#[tokio::test]
async fn a_list_that_cannot_go_on_from_where_it_was_begins_anew() {
    let fails = |nth, _| (nth == 2).then(|| http::StatusCode::GONE.into_response());
    let (client, asked) = serve(150, |_| 1, fails).await;
    let watch = Watch { client, ..watch(Duration::from_hours(1)) };
    let error = watch.list(&mut Paging::default()).await.unwrap_err();
    assert!(matches!(&error, WatchError::Api(e) if e.kind() == ApiErrorKind::Gone), "{error}");
    assert_eq!(*asked.lock(), [100, 500]);
}

impl Watch {
    fn marked(&self) {
        self.shared.with(|replica, _| replica.marker_found(self.scope, Found::First));
        self.distrust.notify_one();
    }
}

#[tokio::test]
async fn a_list_is_begun_when_a_marker_was_acknowledged() {
    let watch = watch(Duration::from_hours(1));
    let (shared, scope) = (watch.shared.clone(), watch.scope);
    let early = Arc::new(Mutex::new(None));
    let noted = early.clone();
    let note = move |nth, _| {
        let unmarked = shared.with(|replica, _| !replica.is_marked(scope));
        (nth == 1).then(|| noted.lock().replace(unmarked));
        None
    };
    let (client, _) = serve(1, |_| 1, note).await;
    let watch = Watch { client, ..watch };
    let marked = async {
        // In vain, as whenever a marker is late.
        watch.distrust.notify_one();
        sleep(Duration::from_millis(200)).await;
        watch.marked();
    };
    let (mut listed, mut course, mut paging) = (false, watch.course(), Paging::default());
    // What answers lists begins no watch.
    let _ = tokio::join!(watch.once(&mut listed, &mut course, &mut paging), marked);
    assert!(listed && *early.lock() == Some(false), "{early:?}");
}

#[tokio::test(start_paused = true)]
async fn no_list_waits_for_ever_for_a_marker_that_cannot_be_written() {
    let watch = watch(Duration::from_secs(7));
    let waits = async || {
        let begun = Instant::now();
        watch.wait_for_marker().await;
        begun.elapsed().as_secs()
    };
    assert_eq!(waits().await, 7);
    watch.shared.with(|replica, _| replica.marker_refused(watch.scope));
    assert_eq!(waits().await, 0, "there will be none");
    watch.marked();
    assert_eq!(waits().await, 0);
}

/// How a silent watch ends that is distrusted while it is followed, if it does.
async fn distrusted(watch: &Watch, void: bool) -> Option<Ended> {
    let mut silent = stream::pending();
    let mut course = watch.course();
    let distrust = async {
        if void {
            watch.shared.with(|replica, _| replica.void());
        }
        watch.distrust.notify_one();
    };
    let both = async { tokio::join!(watch.follow(&mut silent, &mut course), distrust).0 };
    timeout(Duration::from_secs(5), both).await.ok().map(Result::unwrap)
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_left_when_it_had_its_time() {
    assert!(distrusted(&watch(Duration::from_hours(1)), false).await.is_none(), "it has hardly begun");
    assert!(matches!(distrusted(&watch(Duration::ZERO), false).await, Some(Ended::Resume)));
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_replica_must_list_ends_at_once_however_young_it_is() {
    let young = watch(Duration::from_hours(1));
    assert!(matches!(distrusted(&young, true).await, Some(Ended::Relist)));
    // Nobody needs to tell a watch that begins after it.
    let (mut silent, mut course) = (stream::pending(), young.course());
    let ended = timeout(Duration::from_secs(5), young.follow(&mut silent, &mut course)).await;
    assert!(matches!(ended, Ok(Ok(Ended::Relist))));
}
