//! The licences of all dependencies, against those that a project under Apache-2.0 OR MIT can build on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::report::Outcome;
use super::runner::cargo;

const ACCEPTED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(super) fn check() -> Result<Outcome> {
    let output = cargo()
        .args(["metadata", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let refused: Vec<String> = packages
        .iter()
        .filter_map(|package| {
            let licence = package["license"].as_str().unwrap_or("none");
            if is_accepted(licence) {
                None
            } else {
                Some(format!("{}: {licence}", package["name"].as_str()?))
            }
        })
        .collect();
    eprintln!("{} packages", packages.len());
    Ok(if refused.is_empty() {
        Outcome::passed()
    } else {
        Outcome::failed(refused.join(", "))
    })
}

/// Whether an SPDX expression can be met with accepted licences only.
fn is_accepted(expression: &str) -> bool {
    // "MIT/Apache-2.0" is the older way to write OR.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words };
    let met = parser.either();
    met == Some(true) && parser.words.is_empty()
}

/// `None` stands for a text that is no expression.
struct Parser<'a> {
    words: &'a [&'a str],
}

impl Parser<'_> {
    fn either(&mut self) -> Option<bool> {
        let mut met = self.both()?;
        while self.take("OR") {
            met |= self.both()?;
        }
        Some(met)
    }

    fn both(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.take("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let met = self.either()?;
            return if self.take(")") { Some(met) } else { None };
        }
        let mut licence = (*self.next()?).to_owned();
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.next()?);
        }
        Some(ACCEPTED.contains(&licence.as_str()))
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn next(&mut self) -> Option<&str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::is_accepted;

    #[test]
    fn expressions_are_understood() {
        for good in [
            "MIT",
            "NCSA",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "BSD-3-Clause AND MIT",
        ] {
            assert!(is_accepted(good), "{good}");
        }
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "",
            "none",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "(MIT OR Apache-2.0) AND GPL-2.0-only",
            "GPL-2.0-only WITH LLVM-exception",
            "(MIT",
            "MIT MIT",
            "MIT OR",
        ] {
            assert!(!is_accepted(bad), "{bad}");
        }
    }
}
