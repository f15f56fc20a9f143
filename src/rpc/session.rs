//! One request's conversation, without a socket: the meaning of answers, and the next message.

use prost::Message;

use crate::{
    Error, Pid, Request, Result,
    proto::rpc::{CriuOpts, CriuReq, CriuReqType, CriuResp},
};

/// A conversation about one request.
#[derive(Debug)]
pub(super) struct Session {
    request: Request,
    /// criu's name of the last event.
    pub(super) last_event: Option<String>,
}

/// The next message from criu.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// criu reports an event, and waits for an answer.
    Notified { name: String, pid: Option<Pid> },
    /// criu has finished; this is its answer, success or failure.
    Done(Box<CriuResp>),
}

impl Session {
    pub(super) fn new(request: Request) -> Session {
        Session { request, last_event: None }
    }

    /// Makes the message that opens the conversation.
    pub(super) fn open(&self, opts: Option<CriuOpts>) -> CriuReq {
        CriuReq { r#type: wire(self.request).into(), opts, ..CriuReq::default() }
    }

    /// Parses one packet of criu's.
    pub(super) fn hear(&mut self, packet: &[u8]) -> Result<Step> {
        let answer = CriuResp::decode(packet)
            .map_err(|error| self.protocol(format!("{} bytes that are no message: {error}", packet.len())))?;
        let kind = CriuReqType::try_from(answer.r#type);
        match kind {
            Ok(CriuReqType::Notify) => self.notified(answer),
            Ok(kind) if kind == answered_as(self.request) => Ok(Step::Done(Box::new(answer))),
            Ok(CriuReqType::Empty) => {
                Err(self.protocol("criu does not know this request (answer of type EMPTY)".to_owned()))
            }
            Ok(kind) => Err(self.protocol(format!("an answer of type {}", kind.as_str_name()))),
            Err(_) => Err(self.protocol(format!("an answer of the unknown type {}", answer.r#type))),
        }
    }

    fn notified(&mut self, answer: CriuResp) -> Result<Step> {
        let notify = answer.notify.ok_or_else(|| self.protocol("an event without a name".to_owned()))?;
        let name = notify.script.ok_or_else(|| self.protocol("an event without a name".to_owned()))?;
        self.last_event = Some(name.clone());
        Ok(Step::Notified { name, pid: notify.pid.map(Pid::from) })
    }

    /// Makes the answer to an event. `external` are resources to add, for `query-ext-files` only.
    pub(super) fn acknowledge(&self, go_on: bool, external: Vec<String>) -> CriuReq {
        let opts = (!external.is_empty()).then(|| CriuOpts { external, ..options() });
        CriuReq {
            r#type: CriuReqType::Notify.into(),
            notify_success: Some(go_on),
            opts,
            ..CriuReq::default()
        }
    }

    pub(super) fn protocol(&self, problem: String) -> Error {
        Error::Protocol { request: self.request, problem }
    }
}

/// Makes empty options; criu requires this one field.
pub(super) fn options() -> CriuOpts {
    CriuOpts { images_dir_fd: -1, ..CriuOpts::default() }
}

fn wire(request: Request) -> CriuReqType {
    match request {
        Request::Version => CriuReqType::Version,
        Request::Check => CriuReqType::Check,
        Request::FeatureCheck => CriuReqType::FeatureCheck,
        Request::Dump => CriuReqType::Dump,
        Request::Restore => CriuReqType::Restore,
        Request::PreDump => CriuReqType::PreDump,
        Request::SinglePreDump => CriuReqType::SinglePreDump,
        Request::PageServer => CriuReqType::PageServer,
        Request::PageServerChild => CriuReqType::PageServerChld,
        Request::WaitPid => CriuReqType::WaitPid,
        Request::CpuinfoDump => CriuReqType::CpuinfoDump,
        Request::CpuinfoCheck => CriuReqType::CpuinfoCheck,
    }
}

fn answered_as(request: Request) -> CriuReqType {
    match request {
        Request::PageServerChild => CriuReqType::PageServer, // a quirk of criu's
        request => wire(request),
    }
}
