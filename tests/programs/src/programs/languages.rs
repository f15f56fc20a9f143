//! Interpreters other than Python and Node, and programs written in them.

use super::{
    PYTHON, Program,
    servers::{assert_answers, free_port, get},
};
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("irb", &["irb"], irb),
    Program::new("lua -i", &["lua5.4"], lua),
    Program::new("threads and asyncio children", &["python3"], threads_and_children),
    Program::new("LMDB", &["python3 lmdb"], lmdb),
    Program::new("npm run with a watcher", &["npm", "node"], npm_run),
];

fn irb(stage: &mut Stage) -> Result {
    stage.start(Kind::Terminal, &["irb", "-f", "--noprompt", "--nomultiline", "--nosingleline"])?;
    stage.line("kept = Thread.new { sleep }; secret = rand(10**9); puts \"secret\" + \"=#{secret}.\"")?;
    let secret = stage.expect_line("secret=")?;
    stage.moment(|now| {
        now.ask("puts \"again\" + \"=#{secret}.\"", &format!("again={secret}"))?;
        now.ask("puts kept.status + \"ing\"", "sleeping")?;
        now.line("exit")?;
        now.ends_well()
    })
}

fn lua(stage: &mut Stage) -> Result {
    stage.start(Kind::Terminal, &["lua5.4", "-i"])?;
    stage.line("secret = math.random(1 << 40); print('secret' .. '=' .. secret .. '.')")?;
    let secret = stage.expect_line("secret=")?;
    stage.line("maker = coroutine.wrap(function() for n = 1, 9 do coroutine.yield(n) end end)")?;
    stage.ask("print('made' .. maker())", "made1")?;
    stage.moment(|now| {
        now.ask("print('again' .. '=' .. secret .. '.')", &format!("again={secret}"))?;
        now.ask("print('made' .. maker())", "made2")
    })
}

fn threads_and_children(stage: &mut Stage) -> Result {
    stage.place.write(
        "mixed.py",
        r#"import asyncio, random, sys, threading
secret, counts, go_on = random.getrandbits(60), [0] * 4, threading.Condition()
def count(n):
    while True:
        with go_on:
            go_on.wait()
            counts[n] += 1
for n in range(4): threading.Thread(target=count, args=(n,), daemon=True).start()
async def main():
    pipe = asyncio.subprocess.PIPE
    cats = [await asyncio.create_subprocess_exec('cat', stdin=pipe, stdout=pipe) for _ in range(3)]
    loop = asyncio.get_running_loop()
    print('secret', secret, flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        before = list(counts)
        while not all(now > then for now, then in zip(counts, before)):
            with go_on: go_on.notify_all()
            await asyncio.sleep(0.01)
        for cat in cats: cat.stdin.write(line.encode())
        answers = [(await cat.stdout.readline()).decode().strip() for cat in cats]
        print(*answers, secret, flush=True)
    for cat in cats:
        cat.stdin.close()
        await cat.wait()
    print('ended', [cat.returncode for cat in cats], flush=True)
asyncio.run(main())
"#,
    )?;
    stage.start(Kind::Pipes, &[PYTHON, "mixed.py"])?;
    let secret = stage.expect_number("secret ")?;
    stage.ask("one", &format!("one one one {secret}\n"))?;
    stage.moment(|now| now.ask("two", &format!("two two two {secret}\n")))
}

/// An open writing transaction: the lock is in a mapped file.
fn lmdb(stage: &mut Stage) -> Result {
    stage.place.write(
        "data.py",
        r#"import lmdb, random, sys
secret = str(random.getrandbits(60))
env = lmdb.open('data', map_size=1 << 24)
with env.begin(write=True) as first: first.put(b'first', secret.encode())
reader = env.begin()
writer = env.begin(write=True)
writer.put(b'second', secret.encode())
print('secret', secret, flush=True)
for line in sys.stdin:
    if line.strip() == 'commit': writer.commit()
    print('reader', reader.get(b'first').decode(), reader.get(b'second'), flush=True)
"#,
    )?;
    let other = "import lmdb\nwith lmdb.open('data', map_size=1 << 24).begin() as t: print(t.get(b'first').decode(), t.get(b'second'))";
    stage.start(Kind::Pipes, &[PYTHON, "data.py"])?;
    let secret = stage.expect_number("secret ")?;
    stage.moment(|now| {
        now.ask("look", &format!("reader {secret} None\n"))?;
        let seen = now.run(&[PYTHON, "-c", other])?;
        now.assert_has(&seen, &format!("{secret} None\n"))?;
        now.ask("commit", &format!("reader {secret} None\n"))?;
        let seen = now.run(&[PYTHON, "-c", other])?;
        now.assert_has(&seen, &format!("{secret} b'{secret}'\n"))
    })
}

/// A development server that reads a file again when it changes.
fn npm_run(stage: &mut Stage) -> Result {
    let port = free_port()?;
    stage.place.write("package.json", r#"{"name": "app", "scripts": {"dev": "node dev.js"}}"#)?;
    stage.place.write("page/text", "first")?;
    stage.place.write(
        "dev.js",
        format!(
            "const fs = require('fs'), secret = Math.random(); let text = fs.readFileSync('page/text', 'utf8');\n\
             fs.watch('page', () => {{ text = fs.readFileSync('page/text', 'utf8'); }});\n\
             require('http').createServer((q, a) => a.end(`${{text}} ${{secret}}.`)).listen({port}, '127.0.0.1', () => console.log('secret', secret));\n"
        ),
    )?;
    stage.start(Kind::Pipes, &["npm", "run", "--silent", "--offline", "--no-update-notifier", "dev"])?;
    let secret = stage.expect_line("secret ")?;
    stage.moment(|now| {
        assert_answers(port, "/", &format!("first {secret}."))?;
        now.place.write("page/text", "changed")?;
        let wanted = format!("changed {secret}.");
        now.wait_until("the change is seen", |_| Ok(get(port, "/").is_ok_and(|body| body.contains(&wanted))))
    })
}
