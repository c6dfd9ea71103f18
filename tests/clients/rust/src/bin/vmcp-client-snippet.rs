//! What docs/agent.md shows: a test runs it, and holds it against the page.

use std::time::Duration;

use redis::aio::ConnectionManagerConfig;
use redis::{AsyncCommands, ExistenceCheck, Expiry, SetExpiry, SetOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let id = "from-rust";
    // snippet:begin
    let client = redis::Client::open(std::env::var("REDIS_URL")?)?; // redis://127.0.0.1:6379
    // Longer than a lease: a write may take one.
    let config = ConnectionManagerConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    let mut connection = client.get_connection_manager_with_config(config).await?;
    let options = SetOptions::default().conditional_set(ExistenceCheck::NX).with_expiration(SetExpiry::EX(1800));
    // None: somebody has created it.
    let _: Option<String> = connection.set_options(format!("mcp:{id}"), r#"{"user":"alice"}"#, options).await?;
    // None: it has ended.
    let session: Option<String> = connection.get_ex(format!("mcp:{id}"), Expiry::EX(1800)).await?;
    // snippet:end
    println!("{}", session.unwrap_or_default());
    Ok(())
}
