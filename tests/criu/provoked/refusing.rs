//! A kernel that refuses: criu, started under a filter that lets system calls of one kind fail. So
//! a test has a kernel that is older than this one, or was built without something.

#![allow(unsafe_code)] // for the filter; nothing but tests install one

use std::{io, os::unix::process::CommandExt, process::Command};

/// The system calls that are to fail.
#[derive(Debug)]
pub(super) struct Calls {
    /// Places in the words that the kernel shows of a call, each with the value it must have.
    conditions: Vec<(u32, u32)>,
    errno: u32,
}

impl Calls {
    /// Those of a number, with these values for these of its arguments.
    pub(super) fn new(number: libc::c_long, arguments: &[(u32, u32)], errno: i32) -> Calls {
        // The number comes first, and the lower halves of the arguments later, on a little-endian
        // machine.
        let number = (0, u32::try_from(number).unwrap());
        let arguments = arguments.iter().map(|(place, value)| (16 + 8 * place, *value));
        let conditions = [number].into_iter().chain(arguments).collect();
        Calls { conditions, errno: errno.unsigned_abs() }
    }

    /// None at all. There is a filter nonetheless, which is enough to keep criu from looking at
    /// those of others.
    pub(super) fn none() -> Calls {
        Calls { conditions: vec![(0, u32::MAX)], errno: 0 }
    }

    /// The words that start another command under this filter.
    pub(super) fn command(&self) -> String {
        let program = std::env::current_exe().unwrap();
        let conditions = self.conditions.iter().map(|(place, value)| format!(" {place} {value}"));
        format!("{} --refusing {}{} --", program.display(), self.errno, conditions.collect::<String>())
    }

    fn parse(words: &[String]) -> Calls {
        let numbers: Vec<u32> = words.iter().map(|word| word.parse().unwrap()).collect();
        let conditions = numbers[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect();
        Calls { conditions, errno: numbers[0] }
    }

    /// Lets them fail from now on, in this thread and all that it starts.
    pub(super) fn refuse(&self) {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, otherwise: usize, k: u32| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt: 0,
            jf: u8::try_from(otherwise).unwrap(),
            k,
        };
        let mut steps = Vec::new();
        for (index, (place, value)) in self.conditions.iter().enumerate() {
            steps.push(step(LOAD, 0, *place));
            // Otherwise it goes to the last step of all.
            steps.push(step(IF_EQUAL, 2 * (self.conditions.len() - index) - 1, *value));
        }
        steps.push(step(RETURN, 0, libc::SECCOMP_RET_ERRNO | self.errno));
        steps.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
        let len = u16::try_from(steps.len()).unwrap();
        let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
        // SAFETY: the program points to as many steps as it says, for as long as the kernel reads
        // them.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// `ERRNO [PLACE VALUE].. -- COMMAND..`: becomes the command, under a filter.
pub(crate) fn main(words: &[String]) {
    let end = words.iter().position(|word| word == "--").unwrap();
    Calls::parse(&words[..end]).refuse();
    panic!("{}", Command::new(&words[end + 1]).args(&words[end + 2..]).exec());
}
