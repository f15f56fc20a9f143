//! The scripted criu's answers: complete, cut short, too long, missing.

use std::time::{Duration, Instant};

use criu_rpc::{Criu, Error, Request, rpc::NoHooks};
use prost::Message;

use super::{asked_for_its_version, dump_by, dumped, pipe, version_answer};
use crate::peer::{Kind, Peer, Resp, answer, hang_up, hear, hear_ack, notify, say, say_bytes};

#[test]
fn an_answer_cut_short_is_never_a_success() {
    let whole = version_answer().encode_to_vec();
    for length in 1..whole.len() {
        let (socket, peer) = Peer::play([hear(Kind::Version), say_bytes(&whole[..length])]);
        let error = Criu::over(socket).version().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. } | Error::Criu(_)), "{length}: {error}");
        peer.done();
    }
}

#[test]
fn junk_is_not_understood() {
    for junk in [&[0xff; 16][..], &[0], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let error = asked_for_its_version([say_bytes(junk)]);
        assert!(matches!(error, Error::Protocol { request: Request::Version, .. }), "{error}");
    }
}

#[test]
fn an_answer_to_another_question_is_not_taken() {
    let error = asked_for_its_version([answer(Kind::Dump)]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("DUMP")), "{error}");
}

#[test]
fn an_answer_of_a_type_from_the_future_is_not_taken() {
    let error = asked_for_its_version([say(Resp { kind: 4242, success: true, ..Resp::default() })]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("4242")), "{error}");
}

#[test]
fn a_criu_that_does_not_know_the_request_is_told_from_one_that_failed() {
    let error = asked_for_its_version([say(Resp::bad(Kind::Empty))]);
    assert!(
        matches!(&error, Error::Protocol { problem, .. } if problem.contains("does not know")),
        "{error}"
    );
}

#[test]
fn silence_ends_at_the_deadline() {
    let (socket, peer) = Peer::play([hear(Kind::Version)]);
    let begin = Instant::now();
    let error = Criu::over(socket).deadline(Duration::from_millis(50)).version().unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(50));
    peer.done();
}

#[test]
fn a_dump_past_its_deadline_is_given_up() {
    let (socket, peer) = Peer::play([hear(Kind::Dump)]);
    let criu = Criu::over(socket).deadline(Duration::from_millis(50));
    let error = dump_by(&criu, &mut NoHooks).unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    peer.done();
}

#[test]
fn an_answer_in_time_is_not_late() {
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer())]);
    Criu::over(socket).deadline(Duration::from_secs(60)).version().unwrap();
    peer.done();
}

#[test]
fn a_hang_up_before_the_answer_is_told_as_such() {
    let error = asked_for_its_version([hang_up()]);
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn a_criu_that_left_before_the_request_is_told_as_such() {
    let (socket, peer) = Peer::play([hang_up()]);
    peer.done();
    let error = Criu::over(socket).version().unwrap_err();
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn an_empty_packet_is_a_hang_up() {
    let error = asked_for_its_version([say_bytes([])]);
    assert!(matches!(error, Error::Gone(_)), "{error}");
}

#[test]
fn a_long_answer_arrives_whole() {
    let text = "long ".repeat(64 * 1024 / 5);
    let bad = Resp { errmsg: Some(format!("{text}and its end")), ..Resp::bad(Kind::Version) };
    let error = asked_for_its_version([say(bad)]);
    let message = error.failure().unwrap().message.as_deref().unwrap();
    assert_eq!(message.len(), text.len() + "and its end".len());
    assert!(message.ends_with("long and its end"));
}

#[test]
fn an_answer_beyond_the_ceiling_is_refused_and_not_read() {
    let bad = Resp { errmsg: Some("x".repeat(300 * 1024)), ..Resp::bad(Kind::Version) };
    let error = asked_for_its_version([say(bad)]);
    assert!(matches!(&error, Error::Protocol { problem, .. } if problem.contains("bytes")), "{error}");
}

#[test]
fn a_descriptor_that_comes_with_an_answer_is_closed() {
    let (read, write) = pipe();
    let (socket, peer) = Peer::play([hear(Kind::Version), say(version_answer()).with(write)]);
    Criu::over(socket).version().unwrap();
    peer.done();
    read.ends();
}

#[test]
fn a_descriptor_that_comes_with_an_answer_beyond_the_ceiling_is_closed() {
    let (read, write) = pipe();
    let bad = Resp { errmsg: Some("x".repeat(300 * 1024)), ..Resp::bad(Kind::Version) };
    asked_for_its_version([say(bad).with(write)]);
    read.ends();
}

#[test]
fn a_descriptor_that_comes_with_an_event_is_closed() {
    let (read, write) = pipe();
    let (stray, other) = pipe();
    let heard = dumped([
        notify("pre-dump").with(write),
        hear_ack(true),
        notify("of-the-future").with(other),
        hear_ack(true),
        answer(Kind::Dump),
    ]);
    heard.unwrap();
    read.ends();
    stray.ends();
}
