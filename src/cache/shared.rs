//! What the parts of a cache share.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::api_server::ApiServer;
use super::config::CacheConfig;
use super::confirm::Confirmer;
use super::events::Counters;
use super::flight::Gets;
use super::state::Streams;
use super::store::Store;
use super::trouble::Troubles;
use super::unconfirmed::Unconfirmed;
use super::unsettled::Unsettled;
use super::write::Writes;
use crate::core::cache::{Habits, Limits};

/// A cache without its background tasks.
pub(super) struct Shared {
    pub config: CacheConfig,
    pub store: Store,
    pub api: ApiServer,
    pub gets: Gets,
    pub writes: Writes,
    pub confirmer: Confirmer,
    pub unconfirmed: Unconfirmed,
    pub unsettled: Arc<Unsettled>,
    pub streams: Streams,
    pub counters: Counters,
    pub trouble: Troubles,
    /// Where requests to the API server run: whoever asks may be on another runtime, which ends before them.
    pub runtime: Handle,
    /// Cancelled when the cache ends.
    pub ended: CancellationToken,
    /// Cancelled when it has ended: no stream is left.
    pub left: CancellationToken,
}

impl Shared {
    pub fn new(client: kube::Client, config: CacheConfig) -> Arc<Self> {
        let limits = Limits { entries: config.entries, bytes: config.bytes };
        let habits = Habits { uses_renew: config.uses_renew, remember_given: config.remember_given };
        Arc::new(Self {
            store: Store::new(limits, habits, config.backlog),
            api: ApiServer::new(client, &config),
            gets: Gets::new(&config),
            writes: Writes::new(&config),
            confirmer: Confirmer::new(config.lease_upper_bound),
            unconfirmed: Unconfirmed::default(),
            unsettled: Arc::default(),
            streams: Streams::new(),
            counters: Counters::default(),
            trouble: Troubles::default(),
            runtime: Handle::current(),
            ended: CancellationToken::new(),
            left: CancellationToken::new(),
            config,
        })
    }
}
