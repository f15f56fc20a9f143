//! Tools that download or run things, in the middle of their work.

use super::Program;
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("git clone", &["git"], git_clone),
    Program::new("GNU parallel", &["parallel"], parallel),
    Program::new("xargs -P", &["xargs", "seq"], xargs),
    Program::new("sudo", &["sudo", "bash"], sudo),
    Program::new("npm install", &["npm", "node"], npm_install),
];

/// Jobs that wait, three at a time.
fn parallel(stage: &mut Stage) -> Result {
    jobs(stage, "seq 12 | parallel --will-cite -j3 --keep-order sh job.sh {}")
}

fn xargs(stage: &mut Stage) -> Result {
    jobs(stage, "seq 12 | xargs -P3 -n1 sh job.sh")
}

fn jobs(stage: &mut Stage, script: &str) -> Result {
    stage
        .place
        .write("job.sh", "touch began$1; until [ -e go ]; do sleep 0.05; done; echo \"item $1.\"\n")?;
    stage.start(Kind::Pipes, &["bash", "-c", script])?;
    stage.wait_until("three jobs run", |stage| {
        Ok((1..=3).all(|job| stage.place.path(&format!("began{job}")).exists()))
    })?;
    stage.moment(|now| {
        now.place.write("go", "")?;
        let output = now.output_to_end()?;
        let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
        let mut wanted: Vec<_> = (1..=12).map(|job| format!("item {job}.")).collect();
        lines.sort();
        wanted.sort();
        now.assert_equal(&[wanted.join(" "), lines.join(" ")])
    })
}

/// A shell below a setuid program that runs as root.
fn sudo(stage: &mut Stage) -> Result {
    let script =
        "value=$RANDOM$RANDOM; echo secret $value; while read -r l; do echo \"$l $value\"; done; exit 7";
    stage.start(Kind::Pipes, &["sudo", "-n", "bash", "-c", script])?;
    let secret = stage.expect_line("secret ")?;
    stage.moment(|now| now.ask("one", &format!("one {secret}\n")))
}

/// A clone that has half of the pack.
fn git_clone(stage: &mut Stage) -> Result {
    stage.place.write(
        "origin.sh",
        r#"set -e
git init -q --initial-branch=main origin
cd origin
git config user.name me; git config user.email me@localhost
for n in 1 2 3 4 5 6 7 8; do
    head -c 300000 /dev/urandom >"file$n"
    git add .; git commit -q -m "commit $n"
done
git config uploadpack.packObjectsHook ignored
"#,
    )?;
    stage.run(&["sh", "origin.sh"])?;
    let head = stage.run(&["git", "-C", "origin", "rev-parse", "HEAD"])?;
    // Sends one million bytes of the pack, and the rest when told to.
    stage.place.write(
        "slow.sh",
        "\"$@\" | { dd bs=1000 count=1000 iflag=fullblock 2>/dev/null; until [ -e ../go ] || [ -e go ]; do sleep 0.05; done; cat; }\n",
    )?;
    let hook = stage.place.path("slow.sh");
    let config = stage.place.home().join(".gitconfig");
    std::fs::write(config, format!("[uploadpack]\n\tpackObjectsHook = sh {}\n", hook.display()))?;
    let origin = format!("file://{}", stage.place.path("origin").display());
    stage.start(Kind::Pipes, &["git", "clone", "--progress", &origin, "clone"])?;
    stage.wait_for_command("dd", 0)?;
    stage.wait_until("half of the pack is there", |stage| {
        let packs = stage.place.path("clone/.git/objects/pack");
        let Ok(packs) = std::fs::read_dir(packs) else { return Ok(false) };
        let size: u64 = packs.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        Ok(size > 900_000)
    })?;
    stage.moment(|now| {
        now.run(&["touch", "go", "origin/go"])?;
        now.ends_well()?;
        let cloned = now.run(&["git", "-C", "clone", "rev-parse", "HEAD"])?;
        now.assert_equal(&[head.clone(), cloned])?;
        now.run(&["git", "-C", "clone", "fsck", "--full"])?;
        let files = now.run(&["sh", "-c", "cat clone/file* | cksum; rm -f origin/go"])?;
        let wanted = now.run(&["sh", "-c", "cat origin/file* | cksum"])?;
        now.assert_equal(&[wanted, files])
    })
}

/// An installation that runs the package's own script.
fn npm_install(stage: &mut Stage) -> Result {
    stage.place.write(
        "dependency/package.json",
        r#"{"name": "dependency", "version": "1.2.3", "main": "index.js", "scripts": {"install": "node install.js"}}"#,
    )?;
    stage.place.write("dependency/index.js", "module.exports = require('./built.js');\n")?;
    let go = stage.place.path("go");
    let ready = stage.place.path("ready");
    stage.place.write(
        "dependency/install.js",
        format!(
            "const fs = require('fs'); const secret = Math.random(); fs.writeFileSync({ready:?}, String(secret));\n\
             const timer = setInterval(() => {{ if (fs.existsSync({go:?})) {{ clearInterval(timer);\n\
             fs.writeFileSync('built.js', `module.exports = ${{secret}};`); }} }}, 20);\n"
        ),
    )?;
    stage.place.write("app/package.json", r#"{"name": "app", "version": "0.0.1"}"#)?;
    stage.run(&["sh", "-c", "cd dependency && npm pack --silent --pack-destination .."])?;
    let words = [
        "npm",
        "--prefix",
        "app",
        "install",
        "--offline",
        "--no-audit",
        "--no-fund",
        "./dependency-1.2.3.tgz",
    ];
    stage.start(Kind::Pipes, &words)?;
    stage.wait_until("the package's script runs", |stage| Ok(stage.place.path("ready").exists()))?;
    stage.moment(|now| {
        now.place.write("go", "")?;
        let output = now.output_to_end()?;
        now.assert_has(&output, "added 1 package")?;
        let secret = now.place.read("ready")?;
        let built = now.run(&["node", "-p", "require('./app/node_modules/dependency')"])?;
        now.assert_equal(&[secret, built.trim_end().to_owned()])
    })
}
