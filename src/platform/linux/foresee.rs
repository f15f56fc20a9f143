//! Preflight of a capture and of a restore, with the options that each adds by itself.

use super::{
    checks::{Check, whole_images},
    dump,
    files::settle_deleted,
    fit,
    foreign::Foreign,
    frozen::{Frozen, terminals},
    links::Links,
    restore::Reviver,
    select,
    streams::Given,
};
use crate::{
    Cause, Error, Foreseen, Foresight, Result,
    platform::{Job, ToRevive},
    preflight::{Finding, Inside, Obstacle, Severity},
    rpc::Key,
};

/// Looks at all trees of the job. Without a criu, that is what blocks.
pub(crate) fn foresee(job: &Job) -> Result<Foresight> {
    dump::check_streams(job)?;
    let mut foresight = Foresight::default();
    let criu = match dump::criu(job) {
        Err(error @ Error::NoCriu { .. }) => {
            foresight.block(error)?;
            return Ok(foresight);
        }
        found => found?,
    };
    let roots = select::roots(&job.pids)?;
    for root in roots.iter().copied() {
        let options = fit::for_dump(job, root, &roots);
        let options = match Inside::of(root.as_raw()) {
            Some(_) => Foreign::of(root, &options).declare(options),
            None => options,
        };
        let found = criu.preflight(root, &options)?;
        foresight.processes += found.processes;
        let is_own = found.findings.iter().any(|finding| finding.obstacle == Obstacle::CallerInside);
        if is_own && !job.leave_running {
            foresight.blocks.push(Foreseen::new(dump::cannot_end_itself()));
        }
        // A capture cures some: it starts criu outside the tree that it is a part of itself, and
        // changes what stopped a job. A restore gives terminals and told streams anew.
        let is_told = |inode| job.streams.iter().flatten().any(|key| *key == Key::Pipe { inode }.to_string());
        let is_cured = |obstacle: &Obstacle| match obstacle {
            Obstacle::CallerInside | Obstacle::HungTerminal | Obstacle::StoppedJob => true,
            // The loss of the senders is told below. No hook runs when this process is frozen.
            Obstacle::QueuedCredentials => !is_own,
            Obstacle::PipeOutside { inode } => is_told(*inode),
            _ => false,
        };
        for finding in found.findings.iter().filter(|finding| !is_cured(&finding.obstacle)) {
            match finding.severity {
                Severity::Blocks => foresight.blocks.push(foreseen(finding)),
                Severity::Risk => foresight.risks.push(foreseen(finding)),
            }
        }
        match Frozen::of(root).losses(&roots) {
            Ok(losses) => losses.iter().for_each(|loss| foresight.risk(loss)),
            Err(error) => foresight.block(error)?,
        }
        let losses = terminals::foresee(root, &options, is_own);
        losses.iter().for_each(|loss| foresight.risk(loss));
    }
    Ok(foresight)
}

fn foreseen(finding: &Finding) -> Foreseen {
    let problem = format!("process {}{}: {}", finding.pid, finding.place, finding.obstacle);
    let cause = finding.obstacle.cause();
    let cure = match &finding.obstacle {
        Obstacle::PipeOutside { inode } => {
            let key = Key::Pipe { inode: *inode };
            format!(
                "if it is a standard stream that the program saved: ProcsCapture::stdout(\"{key}\"), or stdin or \
                 stderr; else ProcsRestore::inherit(\"{key}\", …) at the restore"
            )
        }
        // The table of causes has a cure where the finding itself has none.
        _ => finding.cure().unwrap_or_else(|| cause.advice()).to_owned(),
    };
    Foreseen { problem, cause: Some(cause), cure: Some(cure) }
}

impl Reviver<'_> {
    /// Looks for what reviving these trees would meet. Only the staged images are changed.
    pub(crate) fn foresee(&self, trees: &[ToRevive<'_>], foresight: &mut Foresight) -> Result<()> {
        self.version()?;
        let images = whole_images(trees)?;
        self.check_isolation(&images)?;
        images.iter().try_for_each(settle_deleted)?;
        let links = Links::between(&images)?;
        for (place, images) in images.iter().enumerate() {
            self.until.check(|| "look at what a restore would meet".to_owned())?;
            foresight.processes += images.processes()?.len();
            let lent = Given::new(self.revival, self.chosen, links.of(place))?.lend(images)?;
            let pids = self.pids(images)?;
            let check = Check { revival: self.revival, images, lent: &lent.files, pids: &pids };
            let checked = check.run(&mut |error| foresight.block(error))?;
            let changed = checked.files.changed(images)?;
            let changed = changed.iter().map(ToString::to_string);
            let risks = checked.grown.risks().chain(changed).chain(images.missed_beyond_restore()?);
            risks.for_each(|risk| foresight.risk(risk));
            let zombies = pids.held_by_zombies().into_iter();
            foresight.risks.extend(zombies.map(|problem| Foreseen {
                problem,
                cause: Some(Cause::PidInUse),
                cure: Some("reap it; a restore waits for as long as `wait_for_pids` says".to_owned()),
            }));
        }
        Ok(())
    }
}
