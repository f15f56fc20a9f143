//! Small requests: the version, the features, a check.

use criu_rpc::{Criu, Error, Version};

use super::{asked_for_its_version, numbers, request, told_version};
use crate::peer::{self, Features, Kind, Peer, Req, Resp, answer, hear, say};

#[test]
fn a_version_is_what_criu_says_of_itself() {
    let version = told_version(peer::Version {
        sublevel: Some(1),
        gitid: Some("v4.1.1-3-gabc".to_owned()),
        name: Some("Swift".to_owned()),
        ..numbers(4, 1)
    });
    assert_eq!(version, Version::new(4, 1, 1));
    assert_eq!(version.git_id.as_deref(), Some("v4.1.1-3-gabc"));
    assert_eq!(version.name.as_deref(), Some("Swift"));
}

#[test]
fn a_version_without_a_sublevel_has_zero() {
    assert_eq!(told_version(numbers(4, 2)), Version::new(4, 2, 0));
}

#[test]
fn an_answer_without_a_version_is_not_understood() {
    let error = asked_for_its_version([answer(Kind::Version)]);
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn features_are_what_criu_says_of_them_and_the_others_are_missing() {
    let told = Features { mem_track: Some(true), lazy_pages: Some(false), pidfd_store: None };
    let good = Resp { features: Some(told), ..Resp::good(Kind::FeatureCheck) };
    let (socket, peer) = Peer::play([hear(Kind::FeatureCheck), say(good)]);
    let features = Criu::over(socket).features().unwrap();
    assert_eq!((features.mem_track, features.lazy_pages, features.pidfd_store), (true, false, false));
    let all = Features { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) };
    assert_eq!(peer.done(), [Req { features: Some(all), ..request(Kind::FeatureCheck) }]);
}

#[test]
fn an_answer_without_features_is_not_understood() {
    let (socket, peer) = Peer::play([hear(Kind::FeatureCheck), answer(Kind::FeatureCheck)]);
    let error = Criu::over(socket).features().unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    peer.done();
}

#[test]
fn a_check_that_fails_says_why() {
    let bad = Resp { errmsg: Some("no such kernel".to_owned()), ..Resp::bad(Kind::Check) };
    let (socket, peer) = Peer::play([hear(Kind::Check), say(bad)]);
    let error = Criu::over(socket).check().unwrap_err();
    assert_eq!(error.failure().unwrap().message.as_deref(), Some("no such kernel"));
    let heard = peer.done();
    assert_eq!(heard[0].opts.as_ref().unwrap().log_to_stderr, Some(true), "no log in somebody's folder");
}
