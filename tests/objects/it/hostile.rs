//! Servers that refuse, fail, stall or send anything: the error is clear, in time, and free of
//! secrets.

use std::{
    error::Error as _,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, Digest256, Error, ObjectBlobStore};

use crate::s3::Server;

#[test]
fn wrong_credentials_are_told_at_once_and_not_with_their_values() {
    let server = Server::start();
    let start = Instant::now();
    for wrong in [("secret_access_key", "a wrong secret key"), ("access_key_id", "a wrong access key")] {
        let said = all_of(&server.try_open("p", &[wrong]).unwrap_err());
        assert!(said.starts_with("the store could not list p/key in s3://bucket/p: "), "{said}");
        assert!(!said.contains("wrong") && !said.contains("secret-key-of"), "{said}");
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_server_that_always_fails_is_given_up_in_time() {
    for answer in ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"] {
        fails_in_time(move |stream| {
            let _ = write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 4\r\n\r\nbusy");
        });
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    fails_in_time(|_| thread::sleep(Duration::from_secs(30)));
    // In the middle of an answer.
    fails_in_time(|stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<ListBucketResult>");
        thread::sleep(Duration::from_secs(30));
    });
}

#[test]
fn a_server_that_answers_anything_is_no_store() {
    fails_in_time(|stream| drop(stream.write_all(b"\x00\xff garbage, not HTTP\r\n\r\n")));
    fails_in_time(|stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ngarbage")));
    fails_in_time(|stream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n<"))
    });
    fails_in_time(|_| {});
}

/// A server that lists nothing, and answers every other request with one of these.
#[test]
fn whatever_a_server_gives_for_a_blob_is_verified() {
    let digest = Digest256::of(b"a blob");
    let answers: [(&str, &str); 7] = [
        ("200 OK", "another"),
        ("200 OK", ""),
        ("206 Partial Content", "a blog"),
        ("403 Forbidden", "secret"),
        ("301 Moved Permanently", ""),
        ("400 Bad Request", "?"),
        ("304 Not Modified", ""),
    ];
    for (status, body) in answers {
        let port = serve(move |stream, request| {
            let (status, body) = match request.contains("list-type") {
                true => ("200 OK", "<ListBucketResult></ListBucketResult>"),
                false => (status, body),
            };
            let date = "last-modified: Sun, 22 Nov 2026 00:00:00 GMT\r\netag: \"x\"\r\n";
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status}\r\n{date}content-length: {length}\r\n\r\n{body}");
        });
        let store = open(port, "5").unwrap();
        let start = Instant::now();
        match store.get(&digest) {
            Ok(bytes) => panic!("{status} {body}: {bytes:?}"),
            Err(error @ (Error::Corrupt { .. } | Error::Store { .. })) => {
                assert!(!all_of(&error).contains("hush"), "{error:?}");
            }
            Err(error) => panic!("{status} {body}: {error:?}"),
        }
        assert!(store.get_many(&[digest, digest], &mut |_, _| panic!("{status} {body}")).is_err());
        assert!(start.elapsed() < Duration::from_secs(20), "{status}");
    }
}

#[test]
fn a_url_with_a_password_is_told_without_it() {
    let port = serve(|stream, _| drop(write!(stream, "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")));
    let url = format!("http://somebody:hush-hush@127.0.0.1:{port}/captures?signature=hush-hush");
    let said = all_of(&ObjectBlobStore::open_with(&url, [("patience", "2")]).unwrap_err());
    assert!(said.contains(&format!("http://127.0.0.1:{port}/captures")), "{said}");
    assert!(!said.contains("hush") && !said.contains("somebody"), "{said}");
}

#[test]
fn http_without_encryption_is_refused_unless_it_is_allowed() {
    let port = serve(|_, _| panic!("it was asked"));
    let options = [("endpoint", format!("http://127.0.0.1:{port}")), ("patience", "2".to_owned())];
    let more = [("access_key_id", "me".to_owned()), ("secret_access_key", "hush".to_owned())];
    let error = ObjectBlobStore::open_with("s3://bucket/p", options.into_iter().chain(more)).unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
}

/// Checks that opening a store fails soon after its two seconds of patience.
#[track_caller]
fn fails_in_time(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) {
    let port = serve(move |stream, _| answer(stream));
    let start = Instant::now();
    let error = open(port, "2").unwrap_err();
    let said = all_of(&error);
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    assert!(said.contains("s3://bucket/p") && !said.contains("hush"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(12), "it took {:?}", start.elapsed());
}

pub(crate) fn open(port: u16, patience: &str) -> criu_rpc::Result<ObjectBlobStore> {
    let endpoint = format!("http://127.0.0.1:{port}");
    let options = [
        ("endpoint", endpoint.as_str()),
        ("access_key_id", "me-me-me"),
        ("secret_access_key", "hush-hush"),
        ("allow_http", "true"),
        ("patience", patience),
    ];
    ObjectBlobStore::open_with("s3://bucket/p", options)
}

/// A server that reads the head of one request and then does as it likes.
pub(crate) fn serve(answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = std::sync::Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = std::sync::Arc::clone(&answer);
            thread::spawn(move || {
                let mut stream = stream;
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    request.push(byte[0]);
                }
                answer(&mut stream, &String::from_utf8_lossy(&request));
            });
        }
    });
    port
}

/// Formats an error with all its causes.
fn all_of(error: &Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(deeper) = source {
        said = format!("{said}: {deeper}");
        source = deeper.source();
    }
    said
}
