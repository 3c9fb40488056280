//! `mkimage <archive.tar> <name> [--file <path in image>=<host file>]… [--entrypoint <word>]…`:
//! writes an OCI archive of the host's static busybox, for demos and tests without a registry.

use std::path::PathBuf;
use std::process::ExitCode;

use outpost_tests::oci::{ImageSpec, write_archive};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a command-line tool's one message")]
            {
                eprintln!("mkimage: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(target), Some(name)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!(
            "usage: mkimage <archive.tar> <name> [--file <path in image>=<host file>]… [--entrypoint <word>]…"
        );
    };
    let mut image = ImageSpec::busybox(&name);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| anyhow::anyhow!("{flag} needs a value"))?;
        match flag.as_str() {
            "--file" => {
                let (path, source) = value
                    .split_once('=')
                    .ok_or_else(|| anyhow::anyhow!("--file wants <path in image>=<host file>"))?;
                image
                    .files
                    .push((path.to_owned(), PathBuf::from(source), 0o755));
            }
            "--entrypoint" => {
                image.cmd.clear();
                image.entrypoint.push(value);
            }
            other => anyhow::bail!("unknown flag {other}"),
        }
    }
    write_archive(&image, &PathBuf::from(&target))?;
    Ok(())
}
