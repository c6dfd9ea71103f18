//! What rmcp asks for. It keeps the streams of a session in memory of one process, and can open a session again in
//! another one when it is given what the client said in `initialize`. So that is kept in the session.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, GetExtensions, InitializeRequestParams, JsonRpcMessage, ServerJsonRpcMessage,
};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, LocalSessionManagerError};
use rmcp::transport::streamable_http_server::session::{
    RestoreOutcome, ServerSseMessage, SessionId, SessionManager, SessionRestoreMarker, SessionState, SessionStore,
    SessionStoreError,
};
use thiserror::Error;
use vmcp_session::cache::Metadata;

use crate::gateway::{Opened, Opens};
use crate::live::BACKENDS;
use crate::store::{Store, StoreError};

/// The metadata key with what the client said in `initialize`, as JSON. Only this server knows it.
const INITIALIZE: &str = "mcp.initialize";

/// A session could not be opened or used.
#[derive(Debug, Error)]
pub enum SessionsError {
    /// In memory of this pod.
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
    /// As an object.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A session opens with `initialize`.
    #[error("a session opens with `initialize`")]
    NotInitialize,
}

/// Sessions of all pods: their streams in memory of one, themselves in the store.
pub struct Sessions {
    local: LocalSessionManager,
    store: Arc<Store>,
    opened: Arc<Opened>,
    backends: String,
    idle: Duration,
}

impl Sessions {
    /// New sessions may use these backends, and end when they are not used for so long.
    pub fn new(store: Arc<Store>, opened: Arc<Opened>, backends: String, idle: Duration) -> Self {
        let mut local = LocalSessionManager::default();
        // An answer that was on its way when its pod died is lost, and no other pod has it: say so at once, instead of
        // having the client come back for it.
        local.session_config.sse_retry = None;
        Self { local, store, opened, backends, idle }
    }

    fn first_state(&self, params: &InitializeRequestParams) -> Result<Metadata, StoreError> {
        let params = serde_json::to_string(params).map_err(|error| StoreError::Refused(error.to_string()))?;
        Ok(Metadata::from([(BACKENDS.to_owned(), self.backends.clone()), (INITIALIZE.to_owned(), params)]))
    }
}

impl SessionManager for Sessions {
    type Error = SessionsError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        // The id is a UUID, and so is a valid name of an object.
        Ok(self.local.create_session().await?)
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        mut message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        let JsonRpcMessage::Request(request) = &message else {
            return Err(SessionsError::NotInitialize);
        };
        let ClientRequest::InitializeRequest(initialize) = &request.request else {
            return Err(SessionsError::NotInitialize);
        };
        let restored = request.request.extensions().get::<SessionRestoreMarker>().is_some();
        let state = self.first_state(&initialize.params)?;
        message.insert_extension(Opens(id.clone()));
        let answer = self.local.initialize_session(id, message).await?;
        // rmcp would store it itself, but tell the client that it has a session also when that fails.
        if !restored
            && matches!(answer, JsonRpcMessage::Response(_))
            && let Err(error) = self.store.create(id, state, self.idle).await
        {
            self.close_session(id).await?;
            return Err(error.into());
        }
        Ok(answer)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        // Whether there is such a session at all was asked at the gate, for this very request.
        Ok(self.local.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        self.opened.close(id);
        Ok(self.local.close_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.local.create_stream(id, message).await?)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Self::Error> {
        Ok(self.local.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.local.create_standalone_stream(id).await?)
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.local.resume(id, last_event_id).await?)
    }

    async fn restore_session(&self, id: SessionId) -> Result<RestoreOutcome<Self::Transport>, Self::Error> {
        Ok(self.local.restore_session(id).await?)
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn load(&self, id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let Some(session) = self.store.get(&id.into()).await? else {
            return Ok(None);
        };
        // A session that somebody made with kubectl has nothing of the kind: it is served all the same.
        let said = session.metadata().get(INITIALIZE).and_then(|json| serde_json::from_str(json).ok());
        Ok(Some(SessionState::new(said.unwrap_or_default())))
    }

    /// Done already: see `initialize_session`.
    async fn store(&self, _: &str, _: &SessionState) -> Result<(), SessionStoreError> {
        Ok(())
    }

    /// Done already: the gate does it, and can say when it fails.
    async fn delete(&self, _: &str) -> Result<(), SessionStoreError> {
        Ok(())
    }
}
