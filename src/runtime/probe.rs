//! Asks an admin endpoint how it is: what images without a shell are probed with.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http::Uri;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long it may take, all in all.
const DEADLINE: Duration = Duration::from_secs(5);
/// So much of an answer is read. What follows is not of interest.
const MAX_ANSWER: u64 = 16 * 1024;

/// It is not well, or it is not known.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// It is no address.
    #[error("'{0}' is no address: expected http://HOST:PORT/PATH, or http://:PORT/PATH for this machine")]
    Address(String),
    /// Nobody answers.
    #[error("{address} cannot be asked: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answers in time.
    #[error("{0} does not answer within 5 s")]
    Late(String),
    /// It says that it is not well.
    #[error("{address} answers {status}: {text}")]
    Unwell {
        /// Where.
        address: String,
        /// Its first line.
        status: String,
        /// What it says.
        text: String,
    },
}

/// Asks with GET, and returns what it says if that is 200. Without a host, as in `http://:8081/livez`, this machine is asked.
pub async fn probe(url: &str) -> Result<String, ProbeError> {
    let wrong = || ProbeError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some("http"), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
        return Err(wrong());
    };
    let address = format!("{}:{port}", if host.is_empty() { "localhost" } else { host });
    let failed = |source| ProbeError::Unreachable { address: address.clone(), source };
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let asked = async {
        let mut stream = match host {
            // Without a look into a file that an image may not have.
            "" => {
                TcpStream::connect(&[(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()][..])
                    .await?
            }
            _ => TcpStream::connect(&address).await?,
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(DEADLINE, asked).await.map_err(|_| ProbeError::Late(address.clone()))?.map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let visible = |text: &str| text.chars().filter(|c| !c.is_control() || *c == '\n').collect::<String>();
    let status = visible(head.lines().next().unwrap_or_default());
    if status.split(' ').nth(1) == Some("200") {
        return Ok(visible(body));
    }
    Err(ProbeError::Unwell { address, status, text: visible(body.trim()) })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with this, whatever it was.
    async fn answering(with: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(with.as_bytes()).await.unwrap();
        });
        url
    }

    #[tokio::test]
    async fn only_200_is_well() {
        let url = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(probe(&url).await.unwrap(), "ok");
        let url = answering("HTTP/1.1 503 Service Unavailable\r\n\r\nthe watch is late\u{7}").await;
        let error = probe(&url).await.unwrap_err().to_string();
        assert!(error.contains("503") && error.contains("the watch is late") && !error.contains('\u{7}'), "{error}");
        let here = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.replace("127.0.0.1", "");
        assert_eq!(probe(&here).await.unwrap(), "ok", "{here}");
        let url = answering("nonsense 2000").await;
        assert!(probe(&url).await.is_err());
    }

    #[tokio::test]
    async fn what_is_no_address_and_who_is_not_there_are_told() {
        for bad in ["", "localhost", "https://a:1/", "http://a/", "http://:/", "ftp://a:1"] {
            assert!(matches!(probe(bad).await, Err(ProbeError::Address(_))), "{bad}");
        }
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = probe(&format!("http://{free}/livez")).await.unwrap_err().to_string();
        assert!(error.contains(&free.to_string()) && error.to_lowercase().contains("refused"), "{error}");
    }
}
