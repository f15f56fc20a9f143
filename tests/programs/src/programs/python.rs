//! Python programs. Servers have their clients as parents: one tree, with connections within.

use super::{PYTHON, Program};
use crate::{failure::Result, stage::Stage, talk::Kind};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("python3 -i", &["python3"], interactive),
    Program::new("asyncio server and client", &["python3"], asyncio),
    Program::new("multiprocessing, fork", &["python3"], forked),
    Program::new("multiprocessing, spawn", &["python3"], spawned)
        .limit("its named semaphores are files in `/dev/shm`, which the original goes on using: to go back, restore those, too, which this suite does not"),
    Program::new("pytest mid-run", &["python3 pytest"], pytest),
    Program::new("ipykernel and client", &["python3 ipykernel", "python3 jupyter_client"], ipykernel),
];

/// The interpreter at its prompt, with a value that is only in its memory.
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
        now.expect(">>> ")?;
        // Python misses the key for ever if it comes between the prompt and the wait for a line.
        now.wait_for_sleep()?;
        now.say("\x03")?;
        now.expect("KeyboardInterrupt")?;
        now.line("exit()")?;
        now.ends_well()
    })
}

/// A server with an open connection, in which a reply waits to be read.
fn asyncio(stage: &mut Stage) -> Result {
    stage.place.write(
        "server.py",
        r#"
import asyncio, random
secret = random.getrandbits(60)
async def serve(reader, writer):
    count = 0
    while line := await reader.readline():
        count += 1
        writer.write(b"%d: %d of %s" % (count, secret, line))
        await writer.drain()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()
asyncio.run(main())
"#,
    )?;
    stage.place.write(
        "client.py",
        r#"
import asyncio, sys
async def main():
    server = await asyncio.create_subprocess_exec(
        sys.executable, "server.py", stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL)
    port = int(await server.stdout.readline())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    said = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), sys.stdin)
    async def ask(word):
        writer.write(word + b"\n")
        await writer.drain()
    while line := await said.readline():
        if line == b"send\n":
            await ask(b"sent before")
            print("sent", flush=True)
        else:
            await ask(line.strip())
            print((await reader.readline()).decode(), end="", flush=True)
    server.terminate()
    await server.wait()
    print("done", flush=True)
asyncio.run(main())
"#,
    )?;
    stage.start(Kind::Pipes, &[PYTHON, "client.py"])?;
    stage.line("hello")?;
    let first = stage.expect_line("1: ")?;
    let secret = first.split(' ').next().unwrap_or_default().to_owned();
    stage.ask("send", "sent\n")?;
    stage.moment(|now| {
        now.ask("after", &format!("2: {secret} of sent before\n"))?;
        now.ask("more", &format!("3: {secret} of after\n"))?;
        now.ask("last", &format!("4: {secret} of more\n"))
    })
}

fn forked(stage: &mut Stage) -> Result {
    multiprocessing(stage, "fork")
}

fn spawned(stage: &mut Stage) -> Result {
    multiprocessing(stage, "spawn")
}

/// A pool of workers, each with a value of its own, a queue, a lock and shared memory.
fn multiprocessing(stage: &mut Stage, method: &str) -> Result {
    let program = r#"
import multiprocessing, os, random, sys
def begin(total_, lock_, gate_):
    global total, lock, gate, own
    total, lock, gate = total_, lock_, gate_
    own = random.getrandbits(60)
def work(number):
    gate.wait()
    with lock:
        total.value += number
    return os.getpid(), own, number * number
if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    total, lock, gate = context.Value("q", 0), context.Lock(), context.Barrier(3)
    with context.Pool(3, begin, (total, lock, gate)) as pool:
        def ask(numbers):
            results = pool.map(work, numbers, 1)
            return sorted({(pid, own) for pid, own, _ in results}), [square for _, _, square in results]
        before, squares = ask([1, 2, 3])
        queue = context.Queue()
        queue.put("kept in the queue")
        print("ready", squares, flush=True)
        for line in sys.stdin:
            now, squares = ask([int(number) for number in line.split()])
            print("same workers" if now == before else f"{before} {now}", squares, total.value, queue.get(), flush=True)
"#;
    stage.place.write("pool.py", program.replace("METHOD", method))?;
    stage.start(Kind::Pipes, &[PYTHON, "pool.py"])?;
    stage.expect("ready [1, 4, 9]\n")?;
    stage.moment(|now| now.ask("4 5 6", "same workers [16, 25, 36] 21 kept in the queue\n"))
}

/// The second of three tests, with captured output of the first, and a fixture.
fn pytest(stage: &mut Stage) -> Result {
    stage.place.write(
        "test_it.py",
        r#"
import os, pathlib, random, time, pytest
@pytest.fixture(scope="module")
def secret():
    value = random.getrandbits(60)
    pathlib.Path("secret").write_text(str(value))
    yield value
def test_one(secret, tmp_path):
    print("one has", secret)
    pathlib.Path("begun").write_text("")
def test_two(secret):
    print("two has", secret)
    pathlib.Path("ready").write_text("")
    while not os.path.exists("go"):
        time.sleep(0.02)
    assert secret == 0, "to see its output"
def test_three(secret, capfd):
    os.system("echo from a child")
    assert capfd.readouterr().out == "from a child\n"
    assert pathlib.Path("secret").read_text() == str(secret)
"#,
    )?;
    stage.start(
        Kind::Pipes,
        &[
            "sh",
            "-c",
            "python=$1; shift; \"$python\" -m pytest -p no:cacheprovider -rA; echo \"ended with $?\"",
            "sh",
            PYTHON,
        ],
    )?;
    stage.wait_until("the second test runs", |stage| Ok(stage.place.path("ready").exists()))?;
    stage.moment(|now| {
        now.place.write("go", "")?;
        let output = now.output_to_end()?;
        let secret = now.place.read("secret")?;
        now.assert_has(&output, &format!("one has {secret}\n"))?;
        now.assert_has(&output, &format!("two has {secret}\n"))?;
        now.assert_has(&output, "1 failed, 2 passed")?;
        now.assert_has(&output, "ended with 1\n")
    })
}

/// A Jupyter kernel below the client that started it: five connections, threads, and definitions.
fn ipykernel(stage: &mut Stage) -> Result {
    stage.place.write(
        "client.py",
        r#"
import sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="python3")
manager.kernel_spec.argv[0] = sys.executable
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
def show(message):
    if message["msg_type"] == "stream":
        print(message["content"]["text"], end="", flush=True)
    if message["msg_type"] == "error":
        print(message["content"]["evalue"], flush=True)
print("ready", flush=True)
for line in sys.stdin:
    # Otherwise the kernel may abort the question that follows an error, without any output.
    reply = client.execute_interactive(line, timeout=60, output_hook=show, stop_on_error=False)
    if reply["content"]["status"] == "aborted":
        print("aborted", flush=True)
client.stop_channels()
manager.shutdown_kernel()
"#,
    )?;
    stage.start(Kind::Pipes, &[PYTHON, "client.py"])?;
    stage.expect("ready\n")?;
    stage.line("import random; value = random.getrandbits(60); print('secret', value)")?;
    let secret = stage.expect_number("secret ")?;
    stage.moment(|now| {
        now.ask("print('again', value)", &format!("again {secret}\n"))?;
        now.ask("1 / 0", "division by zero\n")?;
        now.ask("print('line', get_ipython().execution_count)", "line 4\n")
    })
}
