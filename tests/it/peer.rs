//! A criu that plays a script, at the other end of a packet socket pair. The test fails if the
//! client or the peer leaves the script. Every wait of the peer has a deadline.
//!
//! The messages are defined a second time here, from criu's documentation of its fields instead of
//! from the crate. So the two check each other.

use std::{
    io::IoSlice,
    os::fd::{AsRawFd, OwnedFd},
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt,
            socketpair,
            sockopt::{ReceiveTimeout, SndBuf},
        },
        time::TimeVal,
    },
};
use prost::Message;

/// The types of messages, with criu's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Check = 3,
    PageServer = 5,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
    WaitPid = 11,
}

/// One line of a script.
pub(crate) enum Line {
    /// A request of this type arrives.
    Hear(Kind),
    /// The client acknowledges an event (true) or refuses it (false).
    HearAck(bool),
    /// The peer sends this, maybe with a descriptor.
    Say(Vec<u8>, Option<OwnedFd>),
    /// The peer closes its end. Nothing can follow.
    HangUp,
}

pub(crate) fn hear(kind: Kind) -> Line {
    Line::Hear(kind)
}

pub(crate) fn hear_ack(go_on: bool) -> Line {
    Line::HearAck(go_on)
}

/// An event without a pid.
pub(crate) fn notify(script: &str) -> Line {
    say(Resp::event(Some(script), None))
}

/// A successful answer without content.
pub(crate) fn answer(kind: Kind) -> Line {
    say(Resp::good(kind))
}

pub(crate) fn say(message: Resp) -> Line {
    say_bytes(message.encode_to_vec())
}

pub(crate) fn say_bytes(packet: impl Into<Vec<u8>>) -> Line {
    Line::Say(packet.into(), None)
}

pub(crate) fn hang_up() -> Line {
    Line::HangUp
}

impl Line {
    /// The same line with a descriptor.
    pub(crate) fn with(self, descriptor: OwnedFd) -> Line {
        match self {
            Line::Say(packet, _) => Line::Say(packet, Some(descriptor)),
            _ => panic!("only what is said carries a descriptor"),
        }
    }
}

/// The scripted criu, on a thread of its own.
pub(crate) struct Peer(JoinHandle<Result<Vec<Req>, String>>);

impl Peer {
    /// Starts to play. Returns the client's socket.
    pub(crate) fn play(script: impl IntoIterator<Item = Line>) -> (OwnedFd, Peer) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&ours, ReceiveTimeout, &TimeVal::new(PATIENCE, 0)).unwrap();
        // The kernel caps this at what every process may have.
        setsockopt(&ours, SndBuf, &(1 << 20)).unwrap();
        let script: Vec<Line> = script.into_iter().collect();
        (theirs, Peer(thread::spawn(move || Stage { socket: ours, heard: Vec::new() }.play(script))))
    }

    /// Waits for the end of the script, and returns the requests that the peer received.
    #[track_caller]
    pub(crate) fn done(self) -> Vec<Req> {
        match self.0.join() {
            Ok(Ok(heard)) => heard,
            Ok(Err(problem)) => panic!("the script was left: {problem}"),
            Err(_) => panic!("the peer panicked"),
        }
    }
}

/// The longest wait of the peer, in seconds. A panic that prints a backtrace takes several.
const PATIENCE: i64 = 60;

struct Stage {
    socket: OwnedFd,
    heard: Vec<Req>,
}

impl Stage {
    fn play(mut self, script: Vec<Line>) -> Result<Vec<Req>, String> {
        for line in script {
            match line {
                Line::Hear(kind) => self.hear(kind).map(drop)?,
                Line::HearAck(go_on) => {
                    let said = self.hear(Kind::Notify)?.notify_success;
                    if said != Some(go_on) {
                        return Err(format!("the acknowledgement says {said:?}, not {go_on}"));
                    }
                }
                Line::Say(packet, descriptor) => self.say(&packet, descriptor.as_ref())?,
                Line::HangUp => return Ok(self.heard),
            }
        }
        match self.receive()? {
            None => Ok(self.heard),
            Some(packet) => Err(format!("after the end the client said {packet:?}")),
        }
    }

    fn hear(&mut self, kind: Kind) -> Result<&Req, String> {
        let packet = self.receive()?.ok_or_else(|| format!("the client hung up instead of {kind:?}"))?;
        let request = Req::decode(packet.as_slice()).map_err(|error| format!("{error}: {packet:?}"))?;
        if request.encoded_len() != packet.len() {
            return Err(format!("the client said more than {request:?}"));
        }
        if request.kind != kind as i32 {
            return Err(format!("the client said {request:?} instead of {kind:?}"));
        }
        self.heard.push(request);
        Ok(&self.heard[self.heard.len() - 1])
    }

    /// Returns the next packet; `None` once the client has hung up.
    fn receive(&self) -> Result<Option<Vec<u8>>, String> {
        let mut packet = vec![0; 1 << 16];
        match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET) => Ok(None),
            Ok(size) => {
                packet.truncate(size);
                Ok(Some(packet))
            }
            Err(errno) => Err(format!("the client said nothing: {errno}")),
        }
    }

    fn say(&self, packet: &[u8], descriptor: Option<&OwnedFd>) -> Result<(), String> {
        let numbers: Vec<_> = descriptor.into_iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &control[..] };
        let buffers = [IoSlice::new(packet)];
        sendmsg::<()>(self.socket.as_raw_fd(), &buffers, control, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(|errno| format!("the client does not take {} bytes: {errno}", packet.len()))
    }
}

/// The client's message: `criu_req`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Req {
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) opts: Option<Opts>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) notify_success: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) keep_open: Option<bool>,
    #[prost(message, optional, tag = "5")]
    pub(crate) features: Option<Features>,
}

/// The fields of `criu_opts` that the tests use. An unlisted field fails the test that meets it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Opts {
    #[prost(int32, optional, tag = "1")]
    pub(crate) images_dir_fd: Option<i32>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) leave_running: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(crate) shell_job: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub(crate) log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub(crate) notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub(crate) root: Option<String>,
    #[prost(string, optional, tag = "14")]
    pub(crate) parent_img: Option<String>,
    #[prost(int32, optional, tag = "17")]
    pub(crate) work_dir_fd: Option<i32>,
    #[prost(uint32, optional, tag = "20")]
    pub(crate) cpu_cap: Option<u32>,
    #[prost(string, repeated, tag = "22")]
    pub(crate) exec_cmd: Vec<String>,
    #[prost(bool, optional, tag = "26")]
    pub(crate) rst_sibling: Option<bool>,
    #[prost(int32, optional, tag = "34")]
    pub(crate) manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    pub(crate) ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub(crate) external: Vec<String>,
    #[prost(uint32, optional, tag = "45")]
    pub(crate) timeout: Option<u32>,
    #[prost(int32, optional, tag = "64")]
    pub(crate) network_lock: Option<i32>,
    #[prost(string, optional, tag = "68")]
    pub(crate) images_dir: Option<String>,
    #[prost(bool, optional, tag = "69")]
    pub(crate) leave_stopped: Option<bool>,
    #[prost(bool, optional, tag = "71")]
    pub(crate) log_to_stderr: Option<bool>,
}

/// criu's message: `criu_resp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resp {
    #[prost(int32, required, tag = "1")]
    pub(crate) kind: i32,
    #[prost(bool, required, tag = "2")]
    pub(crate) success: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) dump: Option<DumpResp>,
    #[prost(message, optional, tag = "4")]
    pub(crate) restore: Option<RestoreResp>,
    #[prost(message, optional, tag = "5")]
    pub(crate) notify: Option<Notify>,
    #[prost(message, optional, tag = "6")]
    pub(crate) ps: Option<Server>,
    #[prost(int32, optional, tag = "7")]
    pub(crate) errno: Option<i32>,
    #[prost(message, optional, tag = "8")]
    pub(crate) features: Option<Features>,
    #[prost(string, optional, tag = "9")]
    pub(crate) errmsg: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub(crate) version: Option<Version>,
    #[prost(int32, optional, tag = "11")]
    pub(crate) status: Option<i32>,
}

/// A page server.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Server {
    #[prost(int32, optional, tag = "2")]
    pub(crate) port: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) pid: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct DumpResp {
    #[prost(bool, optional, tag = "1")]
    pub(crate) restored: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RestoreResp {
    #[prost(int32, required, tag = "1")]
    pub(crate) pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Notify {
    #[prost(string, optional, tag = "1")]
    pub(crate) script: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(crate) pid: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Features {
    #[prost(bool, optional, tag = "1")]
    pub(crate) mem_track: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) lazy_pages: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) pidfd_store: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Version {
    #[prost(int32, required, tag = "1")]
    pub(crate) major: i32,
    #[prost(int32, required, tag = "2")]
    pub(crate) minor: i32,
    #[prost(string, optional, tag = "3")]
    pub(crate) gitid: Option<String>,
    #[prost(int32, optional, tag = "4")]
    pub(crate) sublevel: Option<i32>,
    #[prost(string, optional, tag = "6")]
    pub(crate) name: Option<String>,
}

impl Resp {
    pub(crate) fn good(kind: Kind) -> Resp {
        Resp { kind: kind as i32, success: true, ..Resp::default() }
    }

    pub(crate) fn bad(kind: Kind) -> Resp {
        Resp { success: false, ..Resp::good(kind) }
    }

    pub(crate) fn event(script: Option<&str>, pid: Option<i32>) -> Resp {
        let notify = Some(Notify { script: script.map(str::to_owned), pid });
        Resp { notify, ..Resp::good(Kind::Notify) }
    }

    pub(crate) fn restored(pid: i32) -> Resp {
        Resp { restore: Some(RestoreResp { pid }), ..Resp::good(Kind::Restore) }
    }
}
