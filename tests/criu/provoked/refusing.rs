//! A kernel that refuses: criu, started under a filter that lets system calls of one kind fail. So a test has a kernel
//! that is older than this one, or was built without something.

#![allow(unsafe_code)] // for the filter; nothing but tests install one

use std::{io, os::unix::process::CommandExt, process::Command};

/// The system calls that are to fail.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    number: libc::c_long,
    /// Which argument has to have which value.
    arguments: Vec<(usize, u32)>,
    errno: i32,
}

impl Calls {
    pub(super) fn new(number: libc::c_long, arguments: &[(usize, u32)], errno: i32) -> Calls {
        Calls { number, arguments: arguments.to_vec(), errno }
    }

    /// None at all. There is a filter nonetheless, which is enough to keep criu from looking at those of others.
    pub(super) fn none() -> Calls {
        Calls::new(-1, &[], 0)
    }

    /// The words of a command that starts another under this filter.
    pub(super) fn command(&self) -> String {
        let program = std::env::current_exe().unwrap();
        let arguments = self.arguments.iter().map(|(place, value)| format!(" {place} {value}"));
        let arguments = arguments.collect::<String>();
        format!("{} --refusing {} {}{arguments} --", program.display(), self.number, self.errno)
    }

    fn parse(words: &[String]) -> Calls {
        let numbers: Vec<i64> = words.iter().map(|word| word.parse().unwrap()).collect();
        let arguments = numbers[2..].chunks(2).map(|pair| (pair[0] as usize, pair[1] as u32)).collect();
        Calls { number: numbers[0], arguments, errno: numbers[1] as i32 }
    }

    /// Lets them fail from now on, in this thread and all that it starts.
    pub(super) fn refuse(&self) {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, otherwise: usize, k: u32| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: otherwise as u8,
            k,
        };
        // Where the number is in what the kernel shows, and the lower halves of the arguments.
        let conditions = [(0, self.number as u32)];
        let arguments = self.arguments.iter().map(|(place, value)| (16 + 8 * *place as u32, *value));
        let conditions: Vec<_> = conditions.into_iter().chain(arguments).collect();
        let mut steps = Vec::new();
        for (index, (place, value)) in conditions.iter().enumerate() {
            steps.push(step(LOAD, 0, *place));
            steps.push(step(IF_EQUAL, 2 * (conditions.len() - index) - 1, *value));
        }
        steps.push(step(RETURN, 0, libc::SECCOMP_RET_ERRNO | self.errno as u32));
        steps.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the program points to as many steps as it says, for as long as the kernel reads them.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// `NUMBER ERRNO [ARGUMENT VALUE].. -- COMMAND..`: becomes the command, under a filter.
pub(crate) fn main(words: &[String]) {
    let end = words.iter().position(|word| word == "--").unwrap();
    Calls::parse(&words[..end]).refuse();
    panic!("{}", Command::new(&words[end + 1]).args(&words[end + 2..]).exec());
}
