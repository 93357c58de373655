//! What is answered over a real socket.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// The answer to a request, without its date.
async fn ask(path: &str, headers: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page: Page = Arc::new(|format| format!("page as {format:?}\n"));
    let server = tokio::spawn(serve(listener, Arc::new(Vec::new), page));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: kerf\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    server.abort();
    answer.split("\r\n").filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn metrics_are_text_unless_open_metrics_are_asked_for() {
    let text = "HTTP/1.1 200 OK\ncontent-type: text/plain; version=0.0.4; charset=utf-8\n\
                vary: Accept\ncontent-length: 13\nconnection: close\n\npage as Text\n";
    assert_eq!(ask("/metrics", "").await, text);
    let headers = "accept: text/plain;q=0.5\r\naccept: application/openmetrics-text\r\n";
    let open = "HTTP/1.1 200 OK\ncontent-type: application/openmetrics-text; version=1.0.0; \
                charset=utf-8\nvary: Accept\ncontent-length: 20\nconnection: close\n\n\
                page as OpenMetrics\n";
    assert_eq!(ask("/metrics", headers).await, open);
}

#[tokio::test]
async fn probes_are_answered_beside_it() {
    assert!(ask("/healthz", "").await.ends_with("\n\nalive\n"));
    assert!(ask("/readyz", "").await.ends_with("\n\nready\n"));
}
