//! [`FsBlobStore::store_time`]: a clock that never runs fast, for the grace period of collections.
//!
//! The wall clock jumps, so a collection does not measure by it. A store has a time of its own,
//! which begins at zero and advances with each collection. A machine adds the time since its last
//! look, on which two clocks must agree: the time since boot, and the wall clock. After a reboot
//! only the time since boot is certain. A machine that looks for the first time adds nothing. So a
//! jump can delay a sweep, but never hasten it. Without a clock since boot, the wall clock counts
//! alone.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{FsBlobStore, loose::entries};
use crate::Digest256;

/// A machine's last look at the time of the store. All times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    machine: String,
    boot: String,
    /// The time since that boot.
    uptime: u64,
    wall: u64,
    /// The time of the store at the moment of the look.
    time: u64,
}

impl FsBlobStore {
    /// Returns the time of this store, and notes it for the next call. It never goes back.
    pub(super) fn store_time(&self) -> Duration {
        let path = self.root.join("gc.clock");
        let looks = parse(&fs::read_to_string(&path).unwrap_or_default());
        let rounds = entries(&self.condemned()).unwrap_or_default();
        let least = rounds.iter().filter_map(|round| time_of(round)).max().unwrap_or_default();
        let looks = look(looks, here(), u64::try_from(least.as_millis()).unwrap_or(u64::MAX));
        let time = looks[0].time;
        // A failure to note it only delays a sweep.
        let text: String = looks.iter().map(Look::line).collect();
        let noted = self.disk.temporary(&self.tmp).and_then(|(temporary, file)| {
            file.write_at(text.as_bytes(), 0)?;
            temporary.rename(file, &path)
        });
        drop(noted);
        Duration::from_millis(time)
    }
}

/// Parses the time of the store at which a round began, from its folder's name.
pub(super) fn time_of(round: &Path) -> Option<Duration> {
    let millis = round.file_name()?.to_str()?.split('-').nth(2)?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Adds a look of this machine and returns all looks, the new one first. The time of the store is
/// at least `least`.
fn look(mut looks: Vec<Look>, mut here: Look, least: u64) -> Vec<Look> {
    let last = looks.iter().position(|look| look.machine == here.machine).map(|index| looks.remove(index));
    let own = last.map_or(0, |last| last.time.saturating_add(since(&last, &here)));
    let others = looks.iter().map(|look| look.time).max().unwrap_or(0);
    here.time = own.max(others).max(least);
    looks.insert(0, here);
    looks.truncate(MACHINES);
    looks
}

/// Returns the time that has certainly passed on one machine since its last look.
fn since(last: &Look, now: &Look) -> u64 {
    let wall = now.wall.saturating_sub(last.wall);
    if now.boot == WALL_ALONE {
        return wall;
    }
    let booted = if now.boot == last.boot { last.uptime } else { 0 };
    now.uptime.saturating_sub(booted).min(wall)
}

/// Reads the clocks of this machine.
fn here() -> Look {
    let read = |path| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let short = |text: String| Digest256::of(text.as_bytes()).hex()[..16].to_owned();
    let seconds = |text: String| text.split(' ').next()?.parse::<f64>().ok();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    let uptime =
        read("/proc/uptime").and_then(seconds).and_then(|time| Duration::try_from_secs_f64(time).ok());
    let (boot, uptime) = match (read("/proc/sys/kernel/random/boot_id"), uptime) {
        (Some(boot), Some(uptime)) => (short(boot), u64::try_from(uptime.as_millis()).unwrap_or(0)),
        _ => (WALL_ALONE.to_owned(), 0),
    };
    // Without an id, each boot counts as a machine.
    let machine = read("/etc/machine-id").map_or_else(|| boot.clone(), short);
    Look { machine, boot, uptime, wall, time: 0 }
}

impl Look {
    fn line(&self) -> String {
        format!("{} {} {} {} {}\n", self.machine, self.boot, self.uptime, self.wall, self.time)
    }
}

/// Parses all looks in a file. Damaged lines are skipped.
fn parse(text: &str) -> Vec<Look> {
    let look = |line: &str| {
        let mut words = line.split(' ');
        let mut word = || words.next().filter(|word| !word.is_empty());
        let (machine, boot) = (word()?.to_owned(), word()?.to_owned());
        let (uptime, wall) = (word()?.parse().ok()?, word()?.parse().ok()?);
        Some(Look { machine, boot, uptime, wall, time: word()?.parse().ok()? })
    };
    text.lines().filter_map(look).collect()
}

/// Stands for the boot id if the system has no clock since boot.
const WALL_ALONE: &str = "-";

/// The number of machines that are remembered.
const MACHINES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(machine: &str, boot: &str, uptime: u64, wall: u64) -> Look {
        Look { machine: machine.into(), boot: boot.into(), uptime, wall, time: 0 }
    }

    /// Returns the time of the store after each of these looks.
    fn times(moments: &[Look]) -> Vec<u64> {
        let mut looks = Vec::new();
        let mut times = Vec::new();
        for moment in moments {
            // Write and parse the file each time.
            looks = parse(&looks.iter().map(Look::line).collect::<String>());
            looks = look(looks, moment.clone(), 0);
            times.push(looks[0].time);
        }
        times
    }

    #[test]
    fn time_passes_as_both_clocks_agree() {
        let steady = [at("m", "a", 1000, 50_000), at("m", "a", 3000, 52_000), at("m", "a", 3500, 52_500)];
        assert_eq!(times(&steady), [0, 2000, 2500]);
    }

    #[test]
    fn a_wall_clock_that_jumps_never_hastens() {
        const DAY: u64 = 86_400_000;
        let ahead =
            [at("m", "a", 1000, 50_000), at("m", "a", 1500, 50_500 + DAY), at("m", "a", 2500, 51_500)];
        assert_eq!(times(&ahead), [0, 500, 500]);
        let back = [at("m", "a", 1000, DAY), at("m", "a", 2000, 10), at("m", "a", 5000, 3010)];
        assert_eq!(times(&back), [0, 0, 3000]);
        let both_ways = [
            at("m", "a", 1000, 5000),
            at("m", "a", 1010, DAY),
            at("m", "a", 1020, 5020),
            at("m", "a", 1030, 5030),
        ];
        assert_eq!(times(&both_ways), [0, 10, 10, 20]);
    }

    #[test]
    fn after_a_reboot_the_time_since_counts_and_no_more() {
        let rebooted =
            [at("m", "a", 90_000, 50_000), at("m", "b", 700, 1_000_000), at("m", "b", 900, 1_000_200)];
        assert_eq!(times(&rebooted), [0, 700, 900]);
        // The clock loses its battery and is set in between.
        let lost = [at("m", "a", 90_000, 50_000), at("m", "b", 700, 0), at("m", "b", 900, 9_000_000)];
        assert_eq!(times(&lost), [0, 0, 200]);
    }

    #[test]
    fn a_machine_counts_what_it_saw_itself() {
        let ahead = 1_000_000;
        let two = [
            at("m", "a", 1000, 1000),
            at("n", "b", 500_000, ahead),
            at("m", "a", 1010, 1010),
            at("n", "b", 500_020, ahead + 20),
            at("m", "a", 1030, 1030),
        ];
        assert_eq!(times(&two), [0, 0, 10, 20, 30]);
    }

    #[test]
    fn a_time_namespace_that_is_ahead_does_not_hasten() {
        assert_eq!(times(&[at("m", "a", 1000, 1000), at("m", "a", 900_000, 1100)]), [0, 100]);
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        assert_eq!(parse("x y\n\n  \na b 1 2 z\nm a 1 2 3\n"), [Look { time: 3, ..at("m", "a", 1, 2) }]);
        assert_eq!(look(Vec::new(), at("m", "a", 1, 2), 77)[0].time, 77);
    }

    #[test]
    fn the_name_of_a_round_tells_its_time() {
        assert_eq!(time_of(Path::new("/s/condemned/1700-ab12-4500")), Some(Duration::from_millis(4500)));
        assert_eq!(time_of(Path::new("/s/condemned/1700-ab12")), None);
    }
}
