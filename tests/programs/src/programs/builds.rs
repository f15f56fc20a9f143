//! Compilers and build tools in the middle of their work.

use std::fmt::Write as _;

use super::Program;
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("gcc mid-compile", &["gcc"], gcc),
    Program::new("rustc mid-compile", &["rustc", "cc"], rustc),
    Program::new("make -j", &["make", "sh"], make),
    Program::new("ninja", &["ninja", "sh"], ninja),
    Program::new("cargo test", &["cargo", "cc"], cargo),
];

/// The compiler proper while it optimizes, with its driver, and the assembler to follow.
fn gcc(stage: &mut Stage) -> Result {
    // A single function, because gcc writes nothing before the function is complete.
    let mut source = String::from("#include <stdio.h>\nint main(void) { unsigned s = 1, a[16] = {0};\n");
    for n in 0..15000 {
        let _ = writeln!(
            source,
            "s = s * 31 + a[(s + {n}) & 15]; if (s & {n}) a[s & 15] ^= s + {n}; else s ^= {n};"
        );
    }
    source += "printf(\"checksum %u\\n\", s); }\n";
    stage.place.write("big.c", source)?;
    stage.start(Kind::Pipes, &["gcc", "-O2", "-o", "big", "big.c"])?;
    stage.wait_for_work("cc1", 0.3)?;
    let mut checksums = Vec::new();
    stage.moment(|now| {
        now.ends_well()?;
        checksums.push(now.run(&["./big"])?);
        now.assert_has(&checksums[0].clone(), "checksum ")?;
        now.assert_equal(&checksums)
    })
}

/// Three of six commands run and wait. The others, and one that depends on all, follow.
fn ninja(stage: &mut Stage) -> Result {
    stage
        .place
        .write("job.sh", "touch began-$1; until [ -e go ]; do sleep 0.05; done; echo made $1 >$1\n")?;
    let mut rules =
        String::from("rule job\n  command = sh job.sh $out\nrule all\n  command = cat $in >$out\n");
    for n in 1..=6 {
        let _ = writeln!(rules, "build out{n}: job");
    }
    rules += "build all: all out1 out2 out3 out4 out5 out6\ndefault all\n";
    stage.place.write("build.ninja", rules)?;
    stage.start(Kind::Pipes, &["ninja", "-j3"])?;
    stage.wait_until("three jobs run", |stage| {
        Ok((1..=6).filter(|n| stage.place.path(&format!("began-out{n}")).exists()).count() == 3)
    })?;
    stage.moment(|now| {
        now.place.write("go", "")?;
        now.ends_well()?;
        let wanted: String = (1..=6).map(|n| format!("made out{n}\n")).collect();
        let made = now.place.read("all")?;
        now.assert_equal(&[wanted, made])
    })
}

/// The compiler, with its threads.
fn rustc(stage: &mut Stage) -> Result {
    let mut source = String::new();
    for n in 0..900 {
        let _ = writeln!(
            source,
            "fn f{n}(x: &mut std::collections::BTreeMap<u32, String>) -> usize {{ x.insert({n}, format!(\"{{:?}}\", x)); \
             x.values().map(|v| v.len() % {}).sum() }}",
            n + 2
        );
    }
    source += "fn main() { let mut x = std::collections::BTreeMap::new(); let mut s = 0;\n";
    for n in 0..900 {
        let _ = writeln!(source, "s += f{n}(&mut x); x.clear();");
    }
    source += "println!(\"checksum {s}\"); }\n";
    stage.place.write("big.rs", source)?;
    stage.start(Kind::Pipes, &["rustc", "-C", "debuginfo=0", "-o", "big", "big.rs"])?;
    stage.wait_for_work("rustc", 0.3)?;
    let mut checksums = Vec::new();
    stage.moment(|now| {
        now.ends_well()?;
        checksums.push(now.run(&["./big"])?);
        now.assert_has(&checksums[0].clone(), "checksum ")?;
        now.assert_equal(&checksums)
    })
}

/// Four jobs at once, with the job server between them.
fn make(stage: &mut Stage) -> Result {
    stage.place.write(
        "Makefile",
        "SECRET := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')\n\
         PARTS := $(foreach n,1 2 3 4 5 6 7 8 9,part$n)\n\
         all: $(PARTS)\n\t@cat $(PARTS); echo built $(SECRET)\n\
         part%:\n\t@echo begun $* $(SECRET).; until [ -e go ]; do sleep 0.05; done; $(MAKE) -s -f sub.mk N=$* S=$(SECRET)\n",
    )?;
    stage
        .place
        .write("sub.mk", "all: x$N\n\t@cat x$N > part$N; rm x$N\nx$N:\n\t@echo part $N of $S > x$N\n")?;
    stage.start(Kind::Pipes, &["make", "-j4"])?;
    let mut secret = String::new();
    for _ in 0..4 {
        let begun = stage.expect_line("begun ")?;
        secret = begun.split_whitespace().nth(1).unwrap_or_default().trim_end_matches('.').to_owned();
    }
    stage.moment(|now| {
        now.place.write("go", "")?;
        let output = now.output_to_end()?;
        for n in 1..=9 {
            now.assert_has(&output, &format!("part {n} of {secret}\n"))?;
        }
        now.assert_has(&output, &format!("built {secret}\n"))
    })
}

/// Tests that run below cargo, which holds locks.
fn cargo(stage: &mut Stage) -> Result {
    stage.place.write(
        "Cargo.toml",
        "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    stage.place.write(
        "src/lib.rs",
        r#"#[cfg(test)]
mod tests {
    fn wait() -> u32 {
        let secret = std::process::id() ^ 0x5a5a;
        println!("waiting with {secret}.");
        while !std::path::Path::new("go").exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        secret
    }
    #[test]
    fn one() { println!("one has {}", wait()); }
    #[test]
    fn two() { println!("two has {}", wait()); }
    #[test]
    fn three() { assert_eq!(1 + 1, 2); }
}
"#,
    )?;
    let words = ["cargo", "test", "--offline", "--lib", "--", "--nocapture", "--test-threads=3"];
    stage.start(Kind::Pipes, &words)?;
    let secret = stage.expect_line("waiting with ")?;
    stage.expect("waiting with ")?;
    stage.moment(|now| {
        now.place.write("go", "")?;
        let output = now.output_to_end()?;
        let secret = secret.trim_end_matches('.');
        now.assert_has(&output, &format!("one has {secret}\n"))?;
        now.assert_has(&output, &format!("two has {secret}\n"))?;
        now.assert_has(&output, "test result: ok. 3 passed")
    })
}
