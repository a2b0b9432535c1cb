//! Files say the same as texts, and every mistake has its line.

use super::*;
use crate::config::NamespaceConfig;

#[test]
fn a_file_says_the_same_as_a_text() {
    let config = Config::from_toml(
        r#"
        # what a comment says
        nsids = [1, 5, "200/2G/4096"]
        lba_formats = [512, 4096]
        size = "4G"
        nn = 300
        mqes = 0x10
        vwc = false
        stepped = true
        backend = "null"
        serial = "S 1"
        [latency]
        read = "80us"
        write = { max = "2ms", min = "20us" }
        flush = { mean = "1ms" }
        "#,
    )
    .unwrap();
    let text = "nsids=1:5:200/2G/4096,lba_formats=512:4096,size=4G,nn=300,mqes=16,vwc=off,stepped,backend=null,serial=S 1,\
                latency.read=80us,latency.write=20us..2ms,latency.flush=exp:1ms";
    assert_eq!(config, text.parse().unwrap());
    assert_eq!(Config::from_toml("").unwrap(), Config::default());
}

#[test]
fn every_key_can_be_in_a_file() {
    let text = "size=4G,lba=4096,nsids=1:5:200,lba_formats=512:4096,nn=300,capacity=20G,vsl=1,wzsl=2,wusl=3,dmrl=4,dmrsl=5,dmsl=6,mssrl=7,\
                mcl=8,msrc=9,mdts=1,mqes=4,queues=1,vectors=9,dstrd=3,mpsmin=1,mpsmax=2,to=255,dulbe=on,vwc=off,backend=null,\
                serial=S 1,model=M,firmware=F,latency.read=1us,latency.write=1us..2ms,latency.flush=exp:3us,\
                latency.other=4ns,latency.admin=5s,latency.seed=6,latency.step=7us,iova_bits=48,mappings=16,\
                stepped=on";
    let file: String = text
        .split(',')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| format!("{key} = '{value}'\n"))
        .collect();
    let keys = crate::config::keys::KEYS
        .iter()
        .filter(|key| key.name != "namespaces");
    for key in keys {
        assert!(file.contains(&format!("{} = ", key.name)), "{}", key.name);
    }
    assert_eq!(Config::from_toml(&file).unwrap(), text.parse().unwrap());
}

#[test]
fn namespaces_have_tables_of_their_own() {
    let config = Config::from_toml(
        "size = '1M'\n[[namespace]]\nlba = 4096\n[[namespace]]\nnsid = 7\nsize = '2M'\n[[namespace]]\n",
    )
    .unwrap();
    let one = |nsid, size, lba| NamespaceConfig { nsid, size, lba };
    assert_eq!(
        config.namespaces,
        [
            one(1, 1 << 20, 4096),
            one(7, 2 << 20, 512),
            one(8, 1 << 20, 512)
        ]
    );
}

#[test]
fn the_command_line_goes_over_the_file() {
    let file = || {
        Config::from_toml(
            "mdts = 7\nmqes = 64\n[[namespace]]\nsize = '1M'\n[[namespace]]\nsize = '2M'\n",
        )
        .unwrap()
    };
    let config = file().with("mdts=3,size=4M").unwrap();
    assert_eq!((config.mdts, config.mqes), (3, 64));
    let sizes: Vec<u64> = config.namespaces.iter().map(|one| one.size).collect();
    assert_eq!(sizes, [4 << 20, 4 << 20]);
    assert_eq!(file().with("").unwrap(), file());
    assert_eq!(file().with("namespaces=1").unwrap().namespaces.len(), 1);
    assert!(file().with("mdts=1,mdts=2").is_err());
    assert!(file().with("mqes=1").is_err());
}

#[test]
fn mistakes_have_their_line() {
    for (text, line, word) in [
        ("mdts = 5\ncolour = 'red'\n", 2, "colour"),
        ("mdts = 5\nmdts = 6\n", 2, "duplicate"),
        ("\nmdts = 17\n", 2, "mdts takes"),
        ("mdts = 'x'\n", 1, "mdts takes"),
        ("mdts = -1\n", 1, "mdts takes"),
        ("mdts = 1.5\n", 1, "mdts"),
        ("mdts = 99999999999999999999\n", 1, "mdts"),
        ("mdts = [5]\n", 1, "mdts"),
        ("mqes = 4\nmpsmin = 3\nmpsmax = 1\n", 3, "mpsmax=1"),
        ("[latency]\nread = '1h'\n", 2, "latency.read takes"),
        ("[latency]\nread = { min = '1us' }\n", 2, "latency.read"),
        (
            "[latency]\nread = { min = '2us', max = '1us' }\n",
            2,
            "latency.read",
        ),
        ("[latency]\nreads = '1us'\n", 2, "latency.reads"),
        ("latency = 5\n", 1, "latency"),
        ("[[namespace]]\nsize = '1M'\nlbas = 4\n", 3, "lbas"),
        ("[[namespace]]\nsize = '1M'\nlba = 513\n", 3, "lba takes"),
        ("[[namespace]]\nlba = 'x'\n", 2, "lba takes"),
        ("[namespace]\nlba = 512\n", 1, "namespace"),
        ("namespace = [5]\n", 1, "namespace"),
        ("nsids = [[1]]\n", 1, "nsids"),
        ("nsids = [5, 1]\n", 1, "nsids"),
        ("mdts = = 5\n", 1, ""),
        ("a.b = 1\n", 1, "a"),
    ] {
        let error = Config::from_toml(text).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("line {line}: ")) && message.contains(word),
            "{text:?}: {message}"
        );
    }
    let both = Config::from_toml("namespaces = 2\n[[namespace]]\n").unwrap_err();
    assert!(both.to_string().contains("only one of"), "{both}");
}
