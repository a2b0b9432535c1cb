//! Every key sets its field, and every mistake is named.

use std::time::Duration;

use super::*;
use crate::config::{BackendKind, CommandLimits, LbaFormats, Names, NamespaceConfig, Offers};
use crate::latency::{Latencies, Latency};

#[test]
fn keys_set_their_fields() {
    let text = "size=4G,lba=4096,nsids=1:5:200,lba_formats=4096:512,nn=300,capacity=20G,vsl=1,wzsl=2,wusl=3,dmrl=4,dmrsl=5,dmsl=6,mssrl=7,\
                mcl=8,msrc=9,mdts=0,mqes=4,queues=1,vectors=9,dstrd=3,mpsmin=1,mpsmax=2,to=255,dulbe,vwc=off,backend=null,\
                serial=S 1,model=M,firmware=F,latency.read=1us,latency.write=1us..2ms,latency.flush=exp:3us,\
                latency.other=4ns,latency.admin=5s,latency.seed=6,latency.step=7us,iova_bits=48,mappings=16,stepped";
    let config: Config = text.parse().unwrap();
    let expected = Config {
        namespaces: [1, 5, 200]
            .map(|nsid| NamespaceConfig {
                nsid,
                size: 4 << 30,
                lba: 4096,
            })
            .into(),
        lba_formats: LbaFormats::new(vec![4096, 512]).unwrap(),
        nn: 300,
        capacity: 20 << 30,
        limits: CommandLimits {
            vsl: 1,
            wzsl: 2,
            wusl: 3,
            dmrl: 4,
            dmrsl: 5,
            dmsl: 6,
            mssrl: 7,
            mcl: 8,
            msrc: 9,
        },
        mdts: 0,
        mqes: 4,
        queues: 1,
        vectors: 9,
        dstrd: 3,
        mpsmin: 1,
        mpsmax: 2,
        to: 255,
        dulbe: true,
        vwc: false,
        backend: BackendKind::Null,
        serial: "S 1".into(),
        model: "M".into(),
        firmware: "F".into(),
        names: Names::default(),
        offers: Offers::default(),
        latency: Latencies {
            read: Latency::Fixed(Duration::from_micros(1)),
            write: Latency::Between(Duration::from_micros(1), Duration::from_millis(2)),
            flush: Latency::Exponential(Duration::from_micros(3)),
            other: Latency::Fixed(Duration::from_nanos(4)),
            admin: Latency::Fixed(Duration::from_secs(5)),
            seed: 6,
            step: Duration::from_micros(7),
        },
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
        Vec::new()
    );
    assert_eq!(
        "namespaces=3".parse::<Config>().unwrap().to_string(),
        "namespaces=3"
    );
    // Unlike namespaces, in any order of the keys.
    let unlike: Config = "nsids=2/64M:3/1M/4096:7,lba=1024".parse().unwrap();
    let namespace = |nsid, size, lba| NamespaceConfig { nsid, size, lba };
    assert_eq!(
        unlike.namespaces,
        [
            namespace(2, 64 << 20, 1024),
            namespace(3, 1 << 20, 4096),
            namespace(7, 1 << 30, 1024)
        ]
    );
    assert_eq!(unlike.to_string().parse::<Config>().unwrap(), unlike);
    assert_eq!(
        (unlike.nn(), unlike.total_capacity()),
        (7, (1 << 30) + (65 << 20))
    );
    assert_eq!(
        "size=1M".parse::<Config>().unwrap().to_string(),
        "size=1048576"
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
        ("nsids=1/1M/512/4", "nsids"),
        ("nsids=1/x", "nsids"),
        ("nsids=1/0", "size"),
        ("nsids=1/1M/513", "lba"),
        ("nsids=1025", "nsids"),
        ("nsids=5,nn=4", "nn"),
        ("nn=1025", "nn"),
        ("lba_formats=", "lba_formats"),
        ("lba_formats=512:512", "lba_formats"),
        ("lba_formats=512:1000", "lba_formats"),
        ("lba_formats=256", "lba_formats"),
        ("lba_formats=131072", "lba_formats"),
        ("capacity=1M", "capacity"),
        ("vsl=17", "vsl"),
        ("wzsl=17", "wzsl"),
        ("wusl=17", "wusl"),
        ("dmrl=256", "dmrl"),
        ("mssrl=0", "mssrl"),
        ("mcl=0", "mcl"),
        ("msrc=256", "msrc"),
        ("mdts=17", "mdts"),
        ("mqes=1", "mqes"),
        ("mqes=65537", "mqes"),
        ("queues=0", "queues"),
        ("queues=4097", "queues"),
        ("vectors=2049", "vectors"),
        ("firmware=123456789", "firmware"),
        ("latency.read=2us..1us", "latency.read"),
        ("latency.admin=61s", "latency.admin"),
        ("latency.seed=-1", "latency.seed"),
        ("latency.step=0", "latency.step"),
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
        "lba_formats=4096",
    ] {
        assert!(
            matches!(text.parse::<Config>(), Err(ConfigError::Together(_))),
            "{text}"
        );
    }
}
