//! Every key sets its field, and every mistake is named.

use super::*;
use crate::config::{BackendKind, ConfigError};

#[test]
fn keys_set_their_fields() {
    let text = "size=4G,lba=4096,nsids=1:5:200,mdts=0,mqes=4,queues=1,dstrd=3,mpsmin=1,mpsmax=2,to=255,vwc=off,backend=null,\
                serial=S 1,model=M,iova_bits=48,mappings=16,stepped";
    let config: Config = text.parse().unwrap();
    let expected = Config {
        size: 4 << 30,
        lba: 4096,
        namespaces: vec![1, 5, 200],
        mdts: 0,
        mqes: 4,
        queues: 1,
        dstrd: 3,
        mpsmin: 1,
        mpsmax: 2,
        to: 255,
        vwc: false,
        backend: BackendKind::Null,
        serial: "S 1".into(),
        model: "M".into(),
        iova_bits: 48,
        mappings: 16,
        stepped: true,
    };
    assert_eq!(config, expected);
    assert_eq!(config.to_string().parse::<Config>().unwrap(), config);
    assert_eq!("".parse::<Config>().unwrap(), Config::default());
    assert_eq!(Config::default().to_string(), "");
    assert_eq!(
        "namespaces=0".parse::<Config>().unwrap().namespaces,
        Vec::<u32>::new()
    );
    assert_eq!(
        "namespaces=3".parse::<Config>().unwrap().to_string(),
        "namespaces=3"
    );
    assert_eq!("mpsmin=6".parse::<Config>().unwrap().mpsmax, 6);
}

#[test]
fn errors_name_the_key_and_what_it_takes() {
    for (text, key) in [
        ("size=0", "size"),
        ("size=1Q", "size"),
        ("size=99999999999999999999", "size"),
        ("size=65T", "size"),
        ("size=18446744073709551615T", "size"),
        ("lba=511", "lba"),
        ("lba=131072", "lba"),
        ("lba=", "lba"),
        ("namespaces=-1", "namespaces"),
        ("namespaces=1025", "namespaces"),
        ("nsids=0", "nsids"),
        ("nsids=5:1", "nsids"),
        ("nsids=", "nsids"),
        ("mdts=17", "mdts"),
        ("mqes=1", "mqes"),
        ("mqes=65537", "mqes"),
        ("queues=0", "queues"),
        ("queues=4097", "queues"),
        ("dstrd=16", "dstrd"),
        ("mpsmin=16", "mpsmin"),
        ("mpsmax=16", "mpsmax"),
        ("to=0", "to"),
        ("to=256", "to"),
        ("vwc=maybe", "vwc"),
        ("backend=tape", "backend"),
        ("serial=", "serial"),
        ("serial=123456789012345678901", "serial"),
        ("model=\u{e9}", "model"),
        ("iova_bits=32", "iova_bits"),
        ("mappings=0", "mappings"),
        ("stepped=2", "stepped"),
    ] {
        match text.parse::<Config>() {
            Err(error @ ConfigError::Value { .. }) => {
                let message = error.to_string();
                assert!(
                    message.contains(&format!("{key} takes ")),
                    "{text}: {message}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let unknown = "colour=red".parse::<Config>().unwrap_err().to_string();
    assert!(
        unknown.contains("'colour'") && unknown.contains("iova_bits"),
        "{unknown}"
    );
    assert!(matches!(
        "to=1,to=2".parse::<Config>(),
        Err(ConfigError::Twice { key: "to" })
    ));
    for text in [
        "size=1025,lba=1024",
        "mpsmin=2,mpsmax=1",
        "mdts=1,lba=16384",
        "queues=4096,dstrd=15",
        "namespaces=1,nsids=1",
    ] {
        assert!(
            matches!(text.parse::<Config>(), Err(ConfigError::Together(_))),
            "{text}"
        );
    }
}
