//! Shells: on pipes, as the persistent shell of an agent, and on terminals.

use super::Program;
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("bash pipelines", &["bash", "seq", "tr"], pipelines),
    Program::new("bash on a terminal", &["bash"], bash),
    Program::new("dash on a terminal", &["dash"], dash),
    Program::new("zsh on a terminal", &["zsh"], zsh),
    Program::new("tail, grep and awk", &["bash", "tail", "grep", "awk"], tail),
];

/// Pipelines in the middle of their work. The writer of one has ended, and its output is in the
/// pipe.
fn pipelines(stage: &mut Stage) -> Result {
    stage.place.write(
        "job.sh",
        r#"secret=$RANDOM$RANDOM; echo "secret $secret"
wait_for() { until [ -e "$1" ]; do sleep 0.05; done; }
seq 60 | tr 0-9 1-90 | {
    while read -r n; do
        sum=$((sum + n))
        if [ "$n" = 46 ]; then echo half; wait_for go; fi
    done
    echo "sum $sum"
} &
{ read -r first; echo "$first"; wait_for go; cat; } <<END
here
document $secret
END
wait
echo "still $secret"
"#,
    )?;
    stage.start(Kind::Pipes, &["bash", "job.sh"])?;
    let secret = stage.expect_line("secret ")?;
    stage.expect("h")?; // "half" and "here" come in any order
    stage.expect("\n")?;
    stage.expect("\n")?;
    let sum: u32 = (1..=60).map(shifted).sum();
    stage.moment(|now| {
        now.place.write("go", "")?;
        let rest = now.output_to_end()?;
        now.assert_has(&rest, &format!("document {secret}\n"))?;
        now.assert_has(&rest, &format!("sum {sum}\n"))?;
        now.assert_has(&rest, &format!("still {secret}\n"))
    })
}

/// Computes what `tr` does: each digit one higher, and 9 becomes 0.
fn shifted(number: u32) -> u32 {
    let digits = number.to_string();
    digits.bytes().fold(0, |value, digit| value * 10 + (u32::from(digit - b'0') + 1) % 10)
}

fn bash(stage: &mut Stage) -> Result {
    interactive(stage, &["bash", "--norc", "--noprofile", "-i"])
}

fn dash(stage: &mut Stage) -> Result {
    interactive(stage, &["dash", "-i"])
}

fn zsh(stage: &mut Stage) -> Result {
    interactive(stage, &["zsh", "-f", "-i"])
}

/// A pipeline that waits for a log to grow.
fn tail(stage: &mut Stage) -> Result {
    stage.place.write("log", "item 1\nother 7\nitem 2\n")?;
    let script = "tail -n +1 -f log | grep --line-buffered item | awk -W interactive '{ sum += $2; print \"sum\", sum; fflush() }'";
    stage.start(Kind::Pipes, &["bash", "-c", script])?;
    stage.expect("sum 3\n")?;
    stage.moment(|now| {
        now.run(&["sh", "-c", "echo other 8 >>log; echo item 4 >>log"])?;
        now.expect("sum 7\n")
    })
}

/// A shell with a variable and a job in the background, at its prompt.
fn interactive(stage: &mut Stage, words: &[&str]) -> Result {
    stage.start(Kind::Terminal, words)?;
    stage.expect("prompt> ")?;
    stage.line("value=$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo \"secret\"=$value.")?;
    let secret = stage.expect_line("secret=")?;
    stage.ask("sleep 1000 &", "prompt> ")?;
    stage.moment(|now| {
        now.ask("echo \"again\"=$value", &format!("again={}", secret.trim_end_matches('.')))?;
        now.ask("stty size", "40 100")?;
        now.ask("ps -o tty= -p $$ | sed 's/^/on /'", "on pts/")?;
        now.ask("jobs", "sleep 1000")?;
        // ^C ends the job in the foreground and nothing else.
        now.ask("echo \"sleeping\" now; sleep 1000", "sleeping now")?;
        now.wait_for_command("sleep", 2)?;
        now.say("\x03")?;
        now.ask("echo $((6 * 7))-", "42-")?;
        // ^Z stops it, and it can be continued.
        now.ask("echo \"sleeping\" more; sleep 1000", "sleeping more")?;
        now.wait_for_command("sleep", 2)?;
        now.say("\x1a")?;
        now.ask("echo $((6 * 8))-", "48-")?;
        now.ask("jobs", if words[0] == "zsh" { "suspended" } else { "Stopped" })?;
        now.ask("kill %1 %2; echo $((6 * 9))-", "54-")?;
        now.line("exit")?;
        now.line("exit")?;
        Ok(())
    })
}
