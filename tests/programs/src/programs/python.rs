//! Python programs.

use super::{PYTHON, Program};
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] =
    &[Program { name: "python3 -i", needs: &["python3"], play: interactive }];

/// The interpreter at its prompt, with a value that only it has.
fn interactive(stage: &mut Stage) -> Result {
    stage.start(Kind::Terminal, &[PYTHON, "-i", "-q"])?;
    stage.expect(">>> ")?;
    stage.line("import random; value = random.getrandbits(60); print('sec' + 'ret', value)")?;
    let secret: u64 = stage.expect_number("secret ")?;
    stage.expect(">>> ")?;
    stage.ask("def grow(): global value; value += 1; return value", "... ")?;
    stage.ask("", ">>> ")?;
    stage.moment(|now| {
        now.ask("print('grown', grow())", &format!("grown {}\r\n", secret + 1))?;
        now.ask("sum(range(10))", "45\r\n")?;
        now.say("\x03")?;
        now.expect("KeyboardInterrupt")?;
        now.say("exit()\n")?;
        now.ends_well()
    })
}
