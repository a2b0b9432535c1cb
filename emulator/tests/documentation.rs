//! What `docs/emulator.md` shows is true.

use nvme_vfio_emulator::{Config, ConfigError, FaultScript};

const TEXT: &str = include_str!("../../docs/emulator.md");

/// The TOML examples.
fn examples() -> Vec<&'static str> {
    TEXT.split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn every_example_is_read() {
    let (mut configurations, mut scripts) = (0, 0);
    for example in examples() {
        if example.contains("[[fault]]") {
            let script = FaultScript::parse(example).unwrap();
            assert_eq!(script.faults().len(), example.matches("[[fault]]").count());
            scripts += 1;
        } else {
            let config = Config::from_toml(example).unwrap();
            assert_ne!(config, Config::default());
            configurations += 1;
        }
    }
    assert!(configurations >= 1 && scripts >= 1);
}

#[test]
fn every_key_is_explained() {
    let error = "colour=red".parse::<Config>().unwrap_err();
    let ConfigError::UnknownKey { .. } = error else {
        panic!("{error}")
    };
    let message = error.to_string();
    let (_, keys) = message.split_once("the keys are ").unwrap();
    for key in keys.split(", ") {
        assert!(TEXT.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn every_fault_of_a_script_is_explained() {
    let error = FaultScript::parse("[[fault]]\n").unwrap_err();
    let (_, names) = error.message.split_once("is one of ").unwrap();
    for name in names.split(", ") {
        assert!(TEXT.contains(&format!("`{name}`")), "{name}");
    }
}
