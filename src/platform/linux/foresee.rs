//! What a capture would meet: preflight, with the options that a capture adds by itself.

use super::{dump, fit, select};
use crate::{
    Error, Foresight, Result,
    platform::Job,
    preflight::{Obstacle, Severity},
    rpc::Key,
};

/// Looks at all trees of the job. Without a criu, that is what blocks.
pub(crate) fn foresee(job: &Job) -> Result<Foresight> {
    let mut foresight = Foresight::default();
    let criu = match dump::criu(job) {
        Err(error @ Error::NoCriu { .. }) => {
            foresight.blocks.push(format!("{error}; {}", error.advice().unwrap_or_default()));
            return Ok(foresight);
        }
        found => found?,
    };
    let roots = select::roots(&job.pids)?;
    for root in roots.iter().copied() {
        let found = criu.preflight(root, &fit::for_dump(job, root, &roots))?;
        foresight.processes += found.processes;
        let is_own = found.findings.iter().any(|finding| finding.obstacle == Obstacle::CallerInside);
        if is_own && !job.leave_running {
            foresight.blocks.push(dump::cannot_end_itself().to_string());
        }
        // A capture starts criu outside the tree that it is a part of itself, and a restore gives
        // terminals and told streams anew.
        let is_told = |inode| job.streams.iter().flatten().any(|key| *key == Key::Pipe { inode }.to_string());
        let is_cured = |obstacle: &Obstacle| match obstacle {
            Obstacle::CallerInside | Obstacle::HungTerminal => true,
            Obstacle::PipeOutside { inode } => is_told(*inode),
            _ => false,
        };
        for finding in found.findings.iter().filter(|finding| !is_cured(&finding.obstacle)) {
            match finding.severity {
                Severity::Blocks => foresight.blocks.push(finding.to_string()),
                Severity::Risk => foresight.risks.push(finding.to_string()),
            }
        }
    }
    Ok(foresight)
}
