//! Programs that make a terminal for another program, or draw on one.

use super::{PYTHON, Program};
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("script", &["script", "bash"], script),
    Program::new("a terminal in a terminal", &["dash", "python3"], nested),
    Program::new("expect", &["expect", "bash"], expect),
    Program::new("watch", &["watch"], watch),
];

/// A shell in a terminal of its own, within the agent's terminal.
fn script(stage: &mut Stage) -> Result {
    // Without `exec`, a shell in between would lead the session, and the inner shell would come
    // back without its terminal.
    let words = ["script", "-q", "-c", "exec bash --norc --noprofile -i", "typescript"];
    stage.start(Kind::Terminal, &words)?;
    stage.expect("prompt> ")?;
    stage.line("value=$RANDOM$RANDOM; echo \"secret\"=$value.")?;
    let secret = stage.expect_line("secret=")?;
    stage.expect("prompt> ")?;
    stage.moment(|now| {
        now.ask("echo \"again\"=$value", &format!("again={}", secret.trim_end_matches('.')))?;
        now.ask("stty size", "40 100")?;
        now.ask("tty | sed 's/^/on /'", "on /dev/pts/")?;
        now.ask("echo \"sleeping\" now; sleep 1000", "sleeping now")?;
        now.wait_for_command("sleep", 1)?;
        now.say("\x03")?;
        now.ask("echo $((6 * 7))-", "42-")?;
        now.line("exit")?;
        now.ends_well()
    })
}

/// Two shells that each have their own terminal by `/dev/tty`, one in the other's.
fn nested(stage: &mut Stage) -> Result {
    stage.start(Kind::Terminal, &["dash", "-i"])?;
    stage.expect("prompt> ")?;
    stage.line("o=$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo out\"er\"=$o.")?;
    let outer = stage.expect_line("outer=")?;
    stage.expect("prompt> ")?;
    stage.line(&format!("{PYTHON} -c 'import pty; pty.spawn([\"dash\", \"-i\"]); print(\"le\" \"ft\")'"))?;
    stage.expect("prompt> ")?;
    stage.line("i=$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo in\"ner\"=$i.")?;
    let inner = stage.expect_line("inner=")?;
    stage.moment(|now| {
        now.ask("echo in\"ner\"=$i. again", &format!("inner={inner} again"))?;
        now.ask("echo \"sleeping\" now; sleep 1000", "sleeping now")?;
        now.wait_for_command("sleep", 1)?;
        now.say("\x03")?;
        now.ask("echo $((6 * 7))-", "42-")?;
        now.ask("echo typed >/dev/tty; tty", "/dev/pts/")?;
        now.ask("exit", "left")?;
        now.expect("prompt> ")?;
        now.ask("echo out\"er\"=$o. again", &format!("outer={outer} again"))?;
        now.ask("echo \"sleeping\" more; sleep 1000", "sleeping more")?;
        now.wait_for_command("sleep", 1)?;
        now.say("\x03")?;
        now.ask("echo $((6 * 8))-", "48-")
    })
}

/// A script that talks to a shell in a terminal, and to the agent over pipes.
fn expect(stage: &mut Stage) -> Result {
    stage.place.write(
        "talk.exp",
        r#"log_user 0
spawn bash --norc --noprofile -i
expect "prompt> "
send "value=\$RANDOM\$RANDOM\r"
expect "prompt> "
while {[gets stdin line] >= 0} {
    send "echo \"answer\"=\$value-$line.\r"
    expect -re {answer=([0-9]+-[a-z]+)\.}
    puts "got $expect_out(1,string)"
    flush stdout
}
"#,
    )?;
    stage.start(Kind::Pipes, &["expect", "-f", "talk.exp"])?;
    stage.line("one")?;
    let first = stage.expect_line("got ")?;
    let secret = first.trim_end_matches("-one").to_owned();
    stage.moment(|now| now.ask("two", &format!("got {secret}-two\n")))
}

/// A screen that is redrawn when the command's output changes.
fn watch(stage: &mut Stage) -> Result {
    stage.place.write("shown", "the first text\n")?;
    stage.start(Kind::Terminal, &["watch", "-n", "0.2", "cat", "shown"])?;
    stage.expect("the first text")?;
    stage.moment(|now| {
        now.place.write("shown", "OTHERWORDS\n")?;
        now.expect("OTHERWORDS")
    })
}
