//! The examples that README.md shows are the ones that are there to be run.

const README: &str = include_str!("../../README.md");

fn is_shown(example: &str) {
    let code = example
        .find("\nuse ")
        .map(|start| example[start..].trim())
        .expect("an example uses something");
    assert!(
        README.contains(&format!("```rust\n{code}\n```")),
        "README.md does not show this:\n{code}"
    );
}

#[test]
fn the_library_in_twenty_lines_is_the_example() {
    is_shown(include_str!("../examples/hello.rs"));
}

#[test]
fn recovery_is_the_example() {
    is_shown(include_str!("../examples/recover.rs"));
}
