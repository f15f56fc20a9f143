//! Process trees to folders of images.
//!
//! A tree that is left running is let go as soon as criu is done, and kept afterwards. A tree that
//! is to end is kept while it is still frozen, inside `post-dump`: only then is criu allowed to
//! kill it. Several trees are dumped side by side, and end together or not at all.

mod rounds;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    mem,
    os::unix::net::UnixStream,
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use self::tree::Tree;
use super::{
    files::LastLook,
    fit,
    frozen::{self, Before, Quiet},
    jobs,
    meeting::{Meeting, Party},
    memory,
    polls::Polls,
    select,
    staging::Staging,
};
use crate::{
    BoxError, Criu, Error, Pid, Request, Result, Until, Warning,
    archive::Trees,
    image::{ImageDir, LedOut, MemoryIn, check_complete, check_version, shared_keys},
    lock::{Condvar, Mutex},
    platform::{Facts, Images, Job, Keep, Memory, Outcome},
    preflight::{beyond_restore, holders},
    procfs::{self, is_in_our_pid_namespace},
    proto::images::StreamNote,
    recent,
    rpc::{Event, Hooks, Lend, NoHooks, SelfDump, check_key, check_nothing_left},
    sys,
    threads::{joined, spawn},
};

/// Dumps, and keeps what was dumped. Memory goes into the folder of images, or to who takes it in.
pub(crate) fn checkpoint<T>(job: &Job, memory: Option<&dyn Memory>, keep: Keep<'_, T>) -> Result<Outcome<T>> {
    check_streams(job)?;
    let criu = criu(job)?;
    let mut staging = Staging::new(job.means.staging.as_deref())?;
    let mut dump = Dump::plan(job, criu, &staging)?;
    dump.warn_of_sessions();
    if !job.leave_running {
        dump.refuse_to_end()?;
    }
    if dump.own.is_some() {
        staging.unlock()?;
    }
    if let Some(memory) = memory
        && dump.own.is_none()
    {
        let has_copies = dump.others.iter().any(|tree| tree.is_copy);
        let wanted = if has_copies { 0 } else { memory.pre_dumps() };
        let pre_dumps = rounds::possible(&dump.criu, wanted)?;
        memory.prepare(memory::expected(dump.roots.iter().copied()), pre_dumps > 0)?;
        // It may have waited for a store.
        if let Some(left) = job.until.remaining() {
            dump.criu = dump.criu.clone().deadline(left);
        }
        dump.memory = Some(memory);
        if pre_dumps > 0 {
            dump.pre_dump(job, pre_dumps, memory, &staging)?;
        }
    }
    let kept = if job.leave_running {
        if dump.leave_running()? == Side::Revived {
            staging.forget();
            return Ok(Outcome::Revived);
        }
        let problems = dump.check()?;
        dump.warn(problems.into_iter().map(|problem| Warning::Unrevivable { problem }).collect());
        keep(&dump.made())?
    } else {
        dump.end(&job.until, &mut |images| match dump.check()? {
            problems if problems.is_empty() => keep(images),
            problems => Err(Error::Unrevivable { problems }),
        })?
    };
    Ok(Outcome::Kept(kept, dump.facts()))
}

/// The refusal of a capture that is to end the process that asks for it.
pub(super) fn cannot_end_itself() -> Error {
    Error::Options {
        option: "leave_running",
        problem: "a process that captures itself goes on; it can end itself afterwards".to_owned(),
    }
}

/// Returns true if criu can dump nothing here, by its own check without a tree.
pub(crate) fn cannot_work(job: &Job) -> bool {
    let checked = criu(job).and_then(|criu| criu.check());
    // It says less of the reason than a dump does.
    matches!(checked, Err(Error::Criu(_) | Error::Gone(_)))
}

/// Fails if a standard stream has a name that criu would give to nothing.
pub(super) fn check_streams(job: &Job) -> Result<()> {
    let streams = ["stdin", "stdout", "stderr"].into_iter().zip(&job.streams);
    streams
        .filter_map(|(option, key)| Some((option, key.as_ref()?)))
        .try_for_each(|(option, key)| check_key(option, key))
}

pub(super) fn criu(job: &Job) -> Result<Criu> {
    let mut criu = match &job.means.criu {
        Some(program) => Criu::at(program),
        None => Criu::new(),
    };
    if let Some(deadline) = job.means.deadline {
        criu = criu.deadline(deadline);
    }
    if let Some(cancel) = &job.means.cancel {
        criu = criu.cancelled_by(cancel);
    }
    criu.program()?;
    Ok(criu)
}

/// The trees, and where their images go.
struct Dump<'a> {
    criu: Criu,
    /// The receiver of memory.
    memory: Option<&'a dyn Memory>,
    /// Those that this process is no part of.
    others: Vec<Tree>,
    /// That which this process is a part of.
    own: Option<Tree>,
    images: Trees,
    roots: Vec<Pid>,
    /// The rounds of pre-dumps that came before, and what they need until the end.
    rounds: Option<rounds::Rounds>,
    /// The standard streams that the caller told.
    streams: Vec<StreamNote>,
    /// Warnings for the caller's user.
    warnings: Mutex<Vec<Warning>>,
}

/// The process in which a self-dump returned.
#[derive(PartialEq)]
enum Side {
    Original,
    Revived,
}

impl<'a> Dump<'a> {
    fn plan(job: &Job, criu: Criu, staging: &Staging) -> Result<Dump<'a>> {
        let roots = select::roots(&job.pids)?;
        let (mut others, mut own, mut folders) = (Vec::new(), None, BTreeMap::new());
        for root in &roots {
            let folder = staging.folder(&root.to_string())?;
            folders.insert(root.as_raw(), folder.clone());
            let options = fit::for_dump(job, *root, &roots).leave_running(job.leave_running);
            let tree = Tree::new(*root, folder, options, roots.len() > 1)?;
            match select::contains_self(*root) {
                true => own = Some(tree), // no more than one can
                false => others.push(tree),
            }
        }
        let images = match folders.len() {
            1 => Trees::One(folders.into_values().next().expect("because there is one")),
            _ => Trees::Several(folders),
        };
        let told = (0..).zip(&job.streams).filter_map(|(stream, key)| Some((stream, key.clone()?)));
        let streams = told.map(|(stream, key)| StreamNote { stream, key }).collect();
        let warnings = Mutex::default();
        Ok(Dump { criu, memory: None, others, own, images, roots, rounds: None, streams, warnings })
    }

    /// Refuses what shows before a tree is frozen: that it could never be revived once it has
    /// ended.
    fn refuse_to_end(&self) -> Result<()> {
        if self.own.is_some() {
            return Err(cannot_end_itself());
        }
        let problems: Vec<_> =
            self.others.iter().flat_map(|tree| beyond_restore(tree.root.as_raw())).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Unrevivable { problems }) }
    }

    /// Has memory taken in while the trees run, so that the dump is of what changed.
    fn pre_dump(&mut self, job: &Job, most: u32, memory: &dyn Memory, staging: &Staging) -> Result<()> {
        let mut rounds = rounds::Rounds::begin(&self.others, job.means.deadline)?;
        self.others.iter().for_each(|tree| jobs::stop_as_criu_knows(tree.root));
        rounds.run(&self.criu, &self.others, most, memory, staging)?;
        for tree in &mut self.others {
            let options = fit::for_dump(job, tree.root, &self.roots).leave_running(job.leave_running);
            tree.options = rounds.with_parent_images(options, tree.root);
        }
        self.criu = rounds.with_remaining_time(&self.criu)?;
        self.rounds = Some(rounds);
        Ok(())
    }

    /// Dumps all trees, and lets each go at once. Our own comes last, because its copy goes on from
    /// there.
    fn leave_running(&self) -> Result<Side> {
        match self.others.as_slice() {
            [] => {}
            [tree] => self.dump(tree, NoHooks)?,
            trees => self.leave_all_running(trees)?,
        }
        let Some(own) = &self.own else { return Ok(Side::Original) };
        // While our own tree stands still nothing can look at it. What is noted now stays true
        // until then, or is of no use.
        let before = Before::look(own.root, &own.options);
        let notes = before.notes(&self.streams);
        // Caches of stores, and what libraries had in the heap, may be of trees that were captured
        // before.
        recent::forget_all();
        sys::trim_heap();
        jobs::stop_as_criu_knows(own.root);
        match self.criu.dump_around_self(own.root, &own.options, &own.folder)? {
            SelfDump::Dumped(dumped) => {
                self.warn_of_interrupted(&dumped.interrupted, own)?;
                let images = ImageDir::new(&own.folder);
                self.warn(before.mend(own.root, &images, &own.options, &self.roots)?);
                frozen::write(&notes, &images)?;
                Ok(Side::Original)
            }
            SelfDump::Restored => Ok(Side::Revived),
        }
    }

    /// Dumps several trees, and lets them go when all are dumped.
    fn leave_all_running(&self, trees: &[Tree]) -> Result<()> {
        let meeting = Meeting::default();
        // All places are taken before the first dump begins.
        let parties: Vec<_> = trees.iter().map(|_| meeting.join(2)).collect();
        thread::scope(|scope| {
            let dumps: Vec<_> = trees
                .iter()
                .zip(parties)
                .map(|(tree, party)| {
                    spawn(scope, move || self.dump(tree, Together { party, lets_go: true, then: NoHooks }))
                })
                .collect();
            let ends: Vec<Result<()>> = dumps.into_iter().map(|dump| joined(dump?.join())).collect();
            if ends.iter().all(Result::is_ok) { Ok(()) } else { Err(first_cause(ends)) }
        })
    }

    fn dump(&self, tree: &Tree, then: impl Hooks) -> Result<()> {
        jobs::stop_as_criu_knows(tree.root);
        let mut hooks =
            Noting { dump: self, tree, stream: None, polls: None, before: None, quiet: None, then };
        let folder =
            File::open(&tree.folder).map_err(Error::io(format!("open {}", tree.folder.display())))?;
        let lend = Lend::images(&folder);
        let dumped = match self.memory {
            None => self.criu.dump(tree.root, &tree.options, lend, &mut hooks),
            Some(memory) => memory::stream(memory, tree.root, |socket, ours| {
                hooks.stream = ours.try_clone().ok();
                self.criu.dump(tree.root, &tree.options, lend.page_server(&socket), &mut hooks)
            }),
        };
        let polls = hooks.polls.take();
        let dumped = dumped.map_err(LastLook::own_error)?;
        polls.map_or(Ok(()), |polls| polls.mend(&ImageDir::new(&tree.folder)))?;
        self.warn_of_interrupted(&dumped.interrupted, tree)
    }

    /// Warns of each process that has a thread whose system call the dump has ended. criu names
    /// some of these threads.
    fn warn_of_interrupted(&self, named: &[Pid], tree: &Tree) -> Result<()> {
        let images = ImageDir::new(&tree.folder);
        let found = images.interrupted_threads()?;
        if named.is_empty() && found.is_empty() {
            return Ok(());
        }
        let processes = images.processes()?;
        let of_threads =
            processes.iter().flat_map(|process| process.threads.iter().map(|thread| (*thread, process.pid)));
        let of_threads: HashMap<u32, u32> = of_threads.collect();
        // A revived thread repeats these calls, so the warning is only for a tree that goes on.
        let repeating =
            if tree.options.leaves_running() { Vec::new() } else { images.repeating_threads()? };
        let named = named.iter().map(|thread| thread.as_raw().unsigned_abs());
        let threads: BTreeSet<u32> =
            named.chain(found).filter(|thread| !repeating.contains(thread)).collect();
        // In a pid namespace of its own, the tree has other pids than those that the caller sees.
        let within = images.has_own_pids()?;
        let process = |thread| match of_threads.get(&thread).filter(|_| !within) {
            Some(process) => tree.here(*process),
            None => tree.root,
        };
        let processes: BTreeSet<Pid> = threads.into_iter().map(process).collect();
        self.warn(processes.into_iter().map(|pid| Warning::Interrupted { pid }).collect());
        Ok(())
    }

    fn made(&self) -> Images<'_> {
        Images { trees: &self.images, roots: &self.roots, criu: self.criu.last_version() }
    }

    /// Dumps all trees, keeps the images while all are frozen, and lets them end.
    fn end<T>(&self, until: &Until, keep: Keep<'_, T>) -> Result<T> {
        let verdict = Verdict { until, decided: Mutex::default(), changed: Condvar::new() };
        let meeting = Meeting::default();
        let parties: Vec<_> = self.others.iter().map(|_| meeting.join(1)).collect();
        thread::scope(|scope| {
            let refusal = Refusal(&verdict);
            let verdict = refusal.0;
            let (tell, told) = mpsc::channel();
            let mut dumps = Vec::new();
            for (tree, party) in self.others.iter().zip(parties) {
                let barrier = PostDumpBarrier { frozen: Some(tell.clone()), verdict };
                let together = Together { party, lets_go: false, then: barrier };
                dumps.push(spawn(scope, move || self.dump(tree, together)));
            }
            drop(tell);
            // A dump that fails drops its sender without a word.
            let all_frozen = told.into_iter().count() == self.others.len();
            let kept = all_frozen.then(|| keep(&self.made()));
            let may_end = verdict.decide(matches!(kept, Some(Ok(_))));
            let ends: Vec<Result<()>> = dumps.into_iter().map(|dump| joined(dump?.join())).collect();
            match kept {
                // The trees were let go while the store was at work.
                Some(Ok(_)) if !may_end => {
                    Err(until.check(keeping).err().unwrap_or_else(|| first_cause(ends)))
                }
                Some(Ok(kept)) => match ends.into_iter().collect::<Result<()>>() {
                    // criu was lost after it was told to go on. What matters is whether the trees
                    // ended.
                    Err(error) if self.others.iter().any(Tree::lives) => Err(error),
                    _ => Ok(kept),
                },
                Some(Err(error)) => Err(error),
                None => Err(first_cause(ends)),
            }
        })
    }

    /// Checks that nothing is missing of what criu says it wrote, and gives what keeps it from
    /// being revived.
    fn check(&self) -> Result<Vec<String>> {
        let memory = if self.memory.is_some() { MemoryIn::Stream } else { MemoryIn::Folder };
        let mut problems = Vec::new();
        let trees = || self.others.iter().chain(&self.own);
        let images: Vec<_> = trees().map(|tree| ImageDir::new(&tree.folder)).collect();
        for images in &images {
            check_version(images, Request::Dump)?;
            check_complete(images, memory, sys::page_size())?;
            problems.extend(images.beyond_restore()?);
        }
        self.warn_of_outside(&trees().collect::<Vec<_>>(), &images)?;
        Ok(problems)
    }

    /// Tells of what leads out of the trees, and comes back without its other side.
    fn warn_of_outside(&self, trees: &[&Tree], images: &[ImageDir]) -> Result<()> {
        let shared = shared_keys(images)?;
        let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
        for (tree, images) in trees.iter().zip(images) {
            let led_out = images.led_out(&shared)?.into_iter();
            let warning = |LedOut { pid, descriptor, key, assumed }| {
                let pid = tree.here(pid);
                match assumed {
                    None => Warning::LeadsOut { pid, descriptor, key },
                    Some(stream) => Warning::StreamAssumed { pid, descriptor, key, stream },
                }
            };
            self.warn(led_out.map(warning).collect());
            let of_others = images.files_of_other_processes()?.into_iter();
            self.warn(of_others.map(|name| Warning::ProcOfOther { path: name.into() }).collect());
        }
        Ok(())
    }

    /// Tells of processes outside that keep numbers of the tree in use.
    fn warn_of_sessions(&self) {
        let here = self.roots.iter().map(|root| root.as_raw());
        let here = here.filter(|root| is_in_our_pid_namespace(*root) != Some(false));
        let tree = here.flat_map(procfs::tree).collect();
        let held = holders(&tree).into_iter();
        let held = held.map(|(pid, by)| Warning::SessionHeld { pid: Pid::from(pid), by: Pid::from(by) });
        self.warn(held.collect());
    }

    fn warn(&self, warnings: Vec<Warning>) {
        self.warnings.lock().extend(warnings);
    }

    fn facts(&self) -> Facts {
        let trees = self.others.iter().chain(&self.own);
        let frozen = trees.filter_map(|tree| ImageDir::new(&tree.folder).frozen()).max();
        let pre_dumps = self.rounds.as_ref().map_or(0, |rounds| rounds.count());
        let warnings = mem::take(&mut *self.warnings.lock());
        Facts { roots: self.roots.clone(), frozen, pre_dumps, warnings }
    }
}

/// Returns the failure that the others followed from: the first that is not a refusal.
fn first_cause(ends: Vec<Result<()>>) -> Error {
    let mut errors: Vec<Error> = ends.into_iter().filter_map(Result::err).collect();
    let cause = errors.iter().position(|error| !matches!(error, Error::Refused { .. })).unwrap_or(0);
    if errors.is_empty() {
        let problem = "it reported success, and dumped nothing".to_owned();
        return Error::Protocol { request: Request::Dump, problem };
    }
    errors.swap_remove(cause)
}

/// Notes what is to be known of the tree once its images are written and it still stands still,
/// before the other hooks are told of that.
struct Noting<'a, H> {
    dump: &'a Dump<'a>,
    tree: &'a Tree,
    /// Our end of the stream of its memory.
    stream: Option<UnixStream>,
    /// Its threads that wait elsewhere meanwhile.
    polls: Option<Polls>,
    /// The state of the tree before criu looked into it.
    before: Option<Before>,
    /// Sockets that are to tell criu no senders.
    quiet: Option<Quiet>,
    then: H,
}

impl<H: Hooks> Hooks for Noting<'_, H> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        if matches!(event, Event::PreDump) {
            self.polls = Some(Polls::of(self.tree.root, self.tree.options.leaves_running()));
        }
        if matches!(event, Event::PostDump) {
            drop(self.quiet.take());
            self.stream.as_ref().map_or(Ok(()), check_nothing_left)?;
            let Tree { root, folder, options, foreign, .. } = self.tree;
            let images = ImageDir::new(folder);
            foreign.name(*root, &images)?;
            self.tree.note_numbers();
            self.polls.as_ref().map_or(Ok(()), |polls| polls.name_restarted(&images))?;
            self.dump.warn(frozen::note(
                *root,
                self.before.take(),
                &images,
                options,
                &self.dump.roots,
                &self.dump.streams,
            )?);
        }
        let (frozen, ends) = (matches!(event, Event::QueryExtFiles(_)), matches!(event, Event::PostDump));
        self.then.on(event)?;
        if frozen {
            // Only now no other tree of the capture sends anything.
            let before = Before::take(self.tree.root, &self.tree.options);
            self.quiet = Some(before.quiet());
            self.before = Some(before);
        }
        if let Some(polls) = self.polls.as_mut().filter(|_| ends) {
            polls.look();
        }
        Ok(())
    }
}

/// Waits for the other trees of the capture when its own is frozen, and again before it is let go:
/// pipes and sockets between them are dumped as they were at one moment. criu tells of the first
/// since 3.19.
struct Together<'a, H> {
    party: Party<'a>,
    /// True if the tree goes on after the last event.
    lets_go: bool,
    then: H,
}

impl<H: Hooks> Hooks for Together<'_, H> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        let (frozen, ends) = (matches!(event, Event::QueryExtFiles(_)), matches!(event, Event::PostDump));
        self.then.on(event)?;
        let met = match (frozen, ends && self.lets_go) {
            (true, _) => self.party.meet(),
            (_, true) => self.party.meet_last(),
            _ => true,
        };
        if met { Ok(()) } else { Err("another tree of the capture could not be dumped".into()) }
    }
}

/// Tells when its tree is frozen and all images are written, and waits for the verdict.
struct PostDumpBarrier<'a> {
    frozen: Option<Sender<()>>,
    verdict: &'a Verdict<'a>,
}

impl Hooks for PostDumpBarrier<'_> {
    fn on(&mut self, event: Event<'_>) -> Result<(), BoxError> {
        if !matches!(event, Event::PostDump) {
            return Ok(());
        }
        if let Some(frozen) = self.frozen.take() {
            frozen.send(()).map_err(|_| "nobody waits for the dump")?;
        }
        match self.verdict.wait() {
            true => Ok(()),
            false => Err("the capture was not kept".into()),
        }
    }
}

/// The decision whether the trees may end: made once, for all of them.
struct Verdict<'a> {
    until: &'a Until,
    decided: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Verdict<'_> {
    /// Decides, unless it is decided, and returns what was.
    fn decide(&self, may_end: bool) -> bool {
        let mut decided = self.decided.lock();
        let decided = *decided.get_or_insert(may_end);
        self.changed.notify_all();
        decided
    }

    /// Waits for the decision, but keeps no tree frozen for a store that is late.
    fn wait(&self) -> bool {
        let mut decided = self.decided.lock();
        loop {
            if let Some(decided) = *decided {
                return decided;
            }
            if self.until.check(keeping).is_err() {
                drop(decided);
                return self.decide(false);
            }
            decided = self.changed.wait_timeout(decided, LOOK);
        }
    }
}

/// Lets the trees go when it is dropped undecided, by a panic of the store.
struct Refusal<'a>(&'a Verdict<'a>);

impl Drop for Refusal<'_> {
    fn drop(&mut self) {
        self.0.decide(false);
    }
}

/// The interval at which a frozen tree checks the deadline.
const LOOK: Duration = Duration::from_millis(20);

fn keeping() -> String {
    "keep the capture".to_owned()
}
