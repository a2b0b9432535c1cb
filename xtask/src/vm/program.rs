//! Programs that go into the machine: built from the workspace, or found on the host.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A program of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// The package that has it.
    pub(super) package: String,
    /// `bin`, `example` or `test`.
    pub(super) kind: &'static str,
    /// Its name.
    pub(super) name: String,
}

/// The workspace's root directory.
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Builds a program of the workspace in release mode, once per process, and returns its path.
pub(super) fn build(target: &Target) -> Result<PathBuf> {
    static BUILT: OnceLock<Mutex<HashMap<Target, PathBuf>>> = OnceLock::new();
    let mut built = BUILT
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(target) {
        return Ok(path.clone());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--message-format=json-render-diagnostics",
            "--package",
            &target.package,
        ])
        .arg(format!("--{}", target.kind))
        .arg(&target.name)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("building {} failed with {}", target.name, output.status);
    }
    let path = executable(&String::from_utf8_lossy(&output.stdout), target).with_context(|| {
        format!(
            "cargo built no {} {} in {}",
            target.kind, target.name, target.package
        )
    })?;
    built.insert(target.clone(), path.clone());
    Ok(path)
}

/// Builds a binary of the workspace in release mode, once per process, and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn build_binary(package: &str, name: &str) -> Result<PathBuf> {
    build(&Target {
        package: package.to_owned(),
        kind: "bin",
        name: name.to_owned(),
    })
}

fn executable(messages: &str, target: &Target) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| {
            let built = &message["target"];
            let ours = built["name"] == target.name.as_str()
                && built["kind"]
                    .as_array()
                    .is_some_and(|kinds| kinds.iter().any(|kind| kind == target.kind));
            if ours {
                message["executable"].as_str().map(PathBuf::from)
            } else {
                None
            }
        })
}

/// The path of a program on the host: in `PATH`, or where Debian keeps what only root runs.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_read_from_cargos_messages() {
        let target = Target {
            package: "p".to_owned(),
            kind: "bin",
            name: "tool".to_owned(),
        };
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"lib\"],\"name\":\"tool\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"bin\"],\"name\":\"tool\"},\"executable\":\"/t/tool\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(
            executable(messages, &target),
            Some(PathBuf::from("/t/tool"))
        );
        let example = Target {
            kind: "example",
            ..target
        };
        assert_eq!(executable(messages, &example), None);
    }
}
