//! The holder's program: a static ELF file of a few hundred bytes, put together here. It keeps a
//! PID namespace alive, so it must not depend on an image, on a C library or on a cross compiler,
//! and it must not grow: three system calls, no writable memory but a stack.
//!
//! ```text
//! rt_sigaction(SIGCHLD, { SIG_IGN, SA_NOCLDWAIT }, NULL, 8)   orphans are reaped by the kernel
//! for (;;) pause()
//! ```
//!
//! As the first process of its namespace it gets no signal that it has no handler for, except
//! SIGKILL from outside: nobody in the pod can end it.

/// How one machine's file looks.
struct Machine {
    /// `e_machine` of `elf.h`.
    number: u16,
    flags: u32,
    is_64: bool,
    code: &'static [u8],
}

/// `struct sigaction` of the kernel: ignore, do not leave zombies; no restorer, no mask.
const ACTION_64: [u64; 4] = [1, 2, 0, 0];
const ACTION_32: [u32; 5] = [1, 2, 0, 0, 0];

/// The action lies right behind the code, which is padded to 8 bytes.
#[rustfmt::skip]
const X86_64: Machine = Machine { number: 62, flags: 0, is_64: true, code: &[
    0xb8, 0x0d, 0x00, 0x00, 0x00,             // mov  eax, 13 (rt_sigaction)
    0xbf, 0x11, 0x00, 0x00, 0x00,             // mov  edi, 17 (SIGCHLD)
    0x48, 0x8d, 0x35, 0x17, 0x00, 0x00, 0x00, // lea  rsi, [rip + action]
    0x31, 0xd2,                               // xor  edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,       // mov  r10d, 8
    0x0f, 0x05,                               // syscall
    0xb8, 0x22, 0x00, 0x00, 0x00,             // again: mov eax, 34 (pause)
    0x0f, 0x05,                               // syscall
    0xeb, 0xf7,                               // jmp  again
    0x0f, 0x1f, 0x40, 0x00,                   // nop
] };

#[rustfmt::skip]
const AARCH64: Machine = Machine { number: 183, flags: 0, is_64: true, code: &[
    0xc8, 0x10, 0x80, 0xd2, // mov x8, #134 (rt_sigaction)
    0x20, 0x02, 0x80, 0xd2, // mov x0, #17 (SIGCHLD)
    0x81, 0x01, 0x00, 0x10, // adr x1, action
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0
    0x03, 0x01, 0x80, 0xd2, // mov x3, #8
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0x00, 0x00, 0x80, 0xd2, // again: mov x0, #0
    0x01, 0x00, 0x80, 0xd2, // mov x1, #0
    0x02, 0x00, 0x80, 0xd2, // mov x2, #0
    0x03, 0x00, 0x80, 0xd2, // mov x3, #0
    0x28, 0x09, 0x80, 0xd2, // mov x8, #73 (ppoll)
    0x01, 0x00, 0x00, 0xd4, // svc #0
    0xfa, 0xff, 0xff, 0x17, // b   again
    0x1f, 0x20, 0x03, 0xd5, // nop
] };

#[rustfmt::skip]
const RISCV64: Machine = Machine { number: 243, flags: 0, is_64: true, code: &[
    0x93, 0x08, 0x60, 0x08, // li    a7, 134 (rt_sigaction)
    0x13, 0x05, 0x10, 0x01, // li    a0, 17 (SIGCHLD)
    0x97, 0x05, 0x00, 0x00, // auipc a1, 0
    0x93, 0x85, 0x05, 0x03, // addi  a1, a1, 48 (action)
    0x13, 0x06, 0x00, 0x00, // li    a2, 0
    0x93, 0x06, 0x80, 0x00, // li    a3, 8
    0x73, 0x00, 0x00, 0x00, // ecall
    0x13, 0x05, 0x00, 0x00, // again: li a0, 0
    0x93, 0x05, 0x00, 0x00, // li    a1, 0
    0x13, 0x06, 0x00, 0x00, // li    a2, 0
    0x93, 0x06, 0x00, 0x00, // li    a3, 0
    0x93, 0x08, 0x90, 0x04, // li    a7, 73 (ppoll)
    0x73, 0x00, 0x00, 0x00, // ecall
    0x6f, 0xf0, 0x9f, 0xfe, // j     again
] };

#[rustfmt::skip]
const ARM: Machine = Machine { number: 40, flags: 0x0500_0400, is_64: false, code: &[
    0xae, 0x70, 0xa0, 0xe3, // mov r7, #174 (rt_sigaction)
    0x11, 0x00, 0xa0, 0xe3, // mov r0, #17 (SIGCHLD)
    0x18, 0x10, 0x8f, 0xe2, // adr r1, action
    0x00, 0x20, 0xa0, 0xe3, // mov r2, #0
    0x08, 0x30, 0xa0, 0xe3, // mov r3, #8
    0x00, 0x00, 0x00, 0xef, // svc #0
    0x1d, 0x70, 0xa0, 0xe3, // again: mov r7, #29 (pause)
    0x00, 0x00, 0x00, 0xef, // svc #0
    0xfc, 0xff, 0xff, 0xea, // b   again
    0x00, 0xf0, 0x20, 0xe3, // nop
] };

/// Where the file is mapped.
const BASE: u32 = 0x0040_0000;
/// `PF_R | PF_X`
const READ_EXECUTE: u32 = 5;

/// The program for a machine as Rust names it.
pub(super) fn program(arch: &str) -> Option<Vec<u8>> {
    let machine = match arch {
        "x86_64" => X86_64,
        "aarch64" => AARCH64,
        "riscv64" => RISCV64,
        "arm" => ARM,
        _ => return None,
    };
    Some(elf(&machine))
}

/// Little-endian ELF: header, one program header (readable and executable), code, action.
fn elf(machine: &Machine) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(machine.is_64), 1, 1];
    file.resize(16, 0);
    let (header, entry): (u16, u16) = if machine.is_64 { (64, 56) } else { (52, 32) };
    let start = header + entry;
    let mut action = Vec::new();
    if machine.is_64 {
        action.extend(ACTION_64.iter().flat_map(|word| word.to_le_bytes()));
    } else {
        action.extend(ACTION_32.iter().flat_map(|word| word.to_le_bytes()));
    }
    let size = usize::from(start) + machine.code.len() + action.len();
    // A few hundred bytes; a file that is not would be a mistake in the tables above.
    let size = u32::try_from(size).unwrap_or_default();
    let word = |file: &mut Vec<u8>, value: u32| {
        file.extend(value.to_le_bytes());
        if machine.is_64 {
            file.extend(0_u32.to_le_bytes());
        }
    };
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    half(&mut file, 2); // ET_EXEC
    half(&mut file, machine.number);
    file.extend(1_u32.to_le_bytes());
    word(&mut file, BASE + u32::from(start)); // entry
    word(&mut file, u32::from(header)); // program headers
    word(&mut file, 0); // section headers: none
    file.extend(machine.flags.to_le_bytes());
    for value in [header, entry, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    if machine.is_64 {
        file.extend(READ_EXECUTE.to_le_bytes());
    }
    word(&mut file, 0); // offset
    word(&mut file, BASE);
    word(&mut file, BASE);
    word(&mut file, size);
    word(&mut file, size);
    if !machine.is_64 {
        file.extend(READ_EXECUTE.to_le_bytes());
    }
    word(&mut file, 0x1000); // alignment
    file.extend(machine.code);
    file.extend(action);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_small_and_its_parts_are_where_they_say() {
        for arch in ["x86_64", "aarch64", "riscv64", "arm"] {
            let file = program(arch).unwrap();
            assert!(file.len() < 256, "{arch}: {}", file.len());
            let is_64 = file[4] == 2;
            let entry = u32::from_le_bytes(file[24..28].try_into().unwrap());
            let start = if is_64 { 120 } else { 84 };
            assert_eq!(entry, BASE + start, "{arch}");
            let action = file.len() - if is_64 { 32 } else { 20 };
            assert_eq!(file[action], 1, "{arch}: SIG_IGN");
            assert_eq!((action - start as usize) % 8, 0, "{arch}: aligned");
        }
        assert!(program("m68k").is_none());
    }

    #[test]
    fn it_runs_and_waits_and_dies_when_killed() {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(file) = program(std::env::consts::ARCH) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hold");
        std::fs::write(&path, file).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        // SIGCHLD is bit 16 of the ignored signals as soon as it waits.
        let ignores = || {
            let text = std::fs::read_to_string(&status).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
            let mask = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
            mask & (1 << 16) != 0
        };
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !ignores() {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None);
    }
}
