use super::*;

/// Each field alone at its highest value, against the bits that the specification gives it.
#[test]
fn cap_fields_are_where_the_specification_puts_them() {
    let fields: [(Cap, u32, u32); 16] = [
        (Cap::new().with_mqes_raw(0xffff), 15, 0),
        (Cap::new().with_cqr(true), 16, 16),
        (Cap::new().with_ams(3), 18, 17),
        (Cap::new().with_to_raw(0xff), 31, 24),
        (Cap::new().with_dstrd(15), 35, 32),
        (Cap::new().with_nssrs(true), 36, 36),
        (Cap::new().with_css(0xff), 44, 37),
        (Cap::new().with_bps(true), 45, 45),
        (Cap::new().with_cps(3), 47, 46),
        (Cap::new().with_mpsmin_raw(15), 51, 48),
        (Cap::new().with_mpsmax_raw(15), 55, 52),
        (Cap::new().with_pmrs(true), 56, 56),
        (Cap::new().with_cmbs(true), 57, 57),
        (Cap::new().with_nsss(true), 58, 58),
        (Cap::new().with_crms(3), 60, 59),
        (Cap::new(), 0, 1),
    ];
    for (cap, high, low) in fields {
        let expected = if high < low {
            0
        } else {
            u64::MAX >> (63 - high) & u64::MAX << low
        };
        assert_eq!(cap.into_bits(), expected, "bits {high}:{low}");
    }
}

#[test]
fn cap_units() {
    let cap = Cap::new()
        .with_mqes_raw(0xffff)
        .with_to_raw(255)
        .with_dstrd(2)
        .with_mpsmin_raw(1);
    assert_eq!(cap.mqes(), 65_536);
    assert_eq!(cap.timeout(), Duration::from_millis(127_500));
    assert_eq!(cap.doorbell_stride(), 16);
    assert_eq!(cap.sq_tail_doorbell(0), 0x1000);
    assert_eq!(cap.cq_head_doorbell(0), 0x1010);
    assert_eq!(cap.sq_tail_doorbell(3), 0x1060);
    assert_eq!(cap.cq_head_doorbell(3), 0x1070);
    assert_eq!(cap.mpsmin().bytes(), 8192);
    assert_eq!(Cap::from_bits(u64::MAX).mpsmax().bytes(), 128 << 20);
    assert!(Cap::new().with_css(0x01).supports_nvm_command_set());
    assert!(Cap::new().with_css(0x40).supports_command_set_identifiers());
    assert!(Cap::new().with_css(0x80).is_admin_only());
    assert!(Cap::from_bits(u64::MAX).is_gone() && !Cap::new().is_gone());
}

#[test]
fn cc_fields_are_where_the_specification_puts_them() {
    assert_eq!(Cc::new().with_en(true).into_bits(), 0x0000_0001);
    assert_eq!(Cc::new().with_css(7).into_bits(), 0x0000_0070);
    assert_eq!(Cc::new().with_mps_raw(15).into_bits(), 0x0000_0780);
    assert_eq!(Cc::new().with_ams(7).into_bits(), 0x0000_3800);
    assert_eq!(Cc::new().with_shn(3).into_bits(), 0x0000_c000);
    assert_eq!(Cc::new().with_iosqes(15).into_bits(), 0x000f_0000);
    assert_eq!(Cc::new().with_iocqes(15).into_bits(), 0x00f0_0000);
    assert_eq!(Cc::new().with_crime(true).into_bits(), 0x0100_0000);
    let page = PageSize::new(65_536).unwrap();
    assert_eq!(Cc::new().with_page_size(page).into_bits(), 4 << 7);
    assert_eq!(Cc::new().with_page_size(page).page_size(), page);
}

#[test]
fn csts_all_ones_is_gone_and_never_ready() {
    let gone = Csts::from_bits(u32::MAX);
    assert!(gone.is_gone() && !gone.is_ready() && !gone.is_fatal() && !gone.is_shut_down());
    assert!(!gone.is_disabled());
    assert!(Csts::from_bits(1).is_ready());
    assert!(Csts::from_bits(2).is_fatal() && Csts::from_bits(2).is_disabled());
    assert!(Csts::from_bits(0b1001).is_shut_down());
    assert!(!Csts::from_bits(0b0101).is_shut_down());
    assert!(Csts::from_bits(1 << 4).nssro());
    assert!(Csts::from_bits(1 << 5).pp());
    assert!(Csts::from_bits(1 << 6).st());
}

#[test]
fn aqa_bounds_its_sizes() {
    let size = |entries| QueueSize::new(entries).unwrap();
    let aqa = Aqa::of(size(32), size(4096)).unwrap();
    assert_eq!(aqa.into_bits(), 0x0fff_001f);
    assert_eq!((aqa.asqs(), aqa.acqs()), (32, 4096));
    assert_eq!(Aqa::of(size(4097), size(2)), None);
    assert_eq!(Aqa::of(size(2), size(4097)), None);
}

#[test]
fn version_and_timeouts() {
    assert_eq!(Version::from_bits(0x0001_0400).to_string(), "1.4");
    assert_eq!(Version::from_bits(0x0001_0201).to_string(), "1.2.1");
    assert!(Version::from_bits(0x0002_0000) > Version::from_bits(0x0001_0400));
    let crto = Crto::from_bits(0xffff_0004);
    assert_eq!(crto.crwmt(), Duration::from_secs(2));
    assert_eq!(crto.crimt(), Duration::from_millis(500 * 0xffff));
}

#[test]
fn controller_memory_buffer() {
    let cmbloc = Cmbloc::from_bits(0x0001_2002);
    assert_eq!((cmbloc.bir(), cmbloc.ofst_raw()), (2, 0x12));
    for (bit, field) in [
        (3, Cmbloc::new().with_cqmms(true)),
        (4, Cmbloc::new().with_cqpds(true)),
        (5, Cmbloc::new().with_cdplms(true)),
        (6, Cmbloc::new().with_cdpcils(true)),
        (7, Cmbloc::new().with_cdmmms(true)),
        (8, Cmbloc::new().with_cqda(true)),
    ] {
        assert_eq!(field.into_bits(), 1 << bit);
    }
    // Four units of 1 MiB (SZU = 2).
    let cmbsz = Cmbsz::from_bits(0x0000_421f);
    assert!(cmbsz.sqs() && cmbsz.cqs() && cmbsz.lists() && cmbsz.rds() && cmbsz.wds());
    assert_eq!(cmbsz.bytes(), Some(4 << 20));
    assert_eq!(cmbloc.offset(cmbsz), Some(0x12 << 20));
    assert_eq!(Cmbsz::new().with_szu(7).with_sz(1).bytes(), None);
    assert_eq!(
        Cmbsz::new().with_szu(6).with_sz(0xf_ffff).bytes(),
        Some(0xf_ffff << 36)
    );
    assert_eq!(
        Cmbmsc::new()
            .with_cre(true)
            .with_cmse(true)
            .with_cba(1)
            .into_bits(),
        0x1003
    );
    assert!(Cmbsts::from_bits(1).cbai());
}

#[test]
fn boot_partition_and_persistent_memory() {
    let bpinfo = Bpinfo::from_bits(0x8200_0003);
    assert_eq!(
        (bpinfo.bytes(), bpinfo.brs(), bpinfo.abpid()),
        (3 * 131_072, 2, true)
    );
    let pmrcap = Pmrcap::from_bits(0x0105_0158);
    assert!(pmrcap.rds() && pmrcap.wds() && pmrcap.cmss());
    assert_eq!((pmrcap.bir(), pmrcap.pmrtu(), pmrcap.pmrwbm()), (2, 1, 0));
    assert_eq!(pmrcap.timeout(), Some(Duration::from_secs(300)));
    assert_eq!(
        Pmrcap::new().with_pmrto(3).timeout(),
        Some(Duration::from_millis(1500))
    );
    assert_eq!(Pmrcap::new().with_pmrtu(2).timeout(), None);
    assert_eq!(Pmrctl::new().with_en(true).into_bits(), 1);
    let pmrsts = Pmrsts::from_bits(0x1500 | 0x7f);
    assert_eq!(
        (pmrsts.err(), pmrsts.nrdy(), pmrsts.hsts(), pmrsts.cbai()),
        (0x7f, true, 2, true)
    );
}

#[test]
fn elasticity_and_throughput() {
    let buffer = ElasticityBuffer::from_bits(0x0000_0311);
    assert_eq!((buffer.szu(), buffer.rbb(), buffer.wbz()), (1, true, 3));
    assert_eq!(buffer.bytes(), Some(3 << 10));
    assert_eq!(ElasticityBuffer::new().with_szu(4).bytes(), None);
    let throughput = WriteThroughput::from_bits(0xffff_ff03);
    assert_eq!(throughput.bytes_per_second(), Some(0xff_ffff << 30));
    assert_eq!(WriteThroughput::from_bits(0x10f).bytes_per_second(), None);
    assert_eq!(Bprsel::new().with_bprsz(0x3ff).into_bits(), 0x0000_03ff);
    assert_eq!(Bprsel::new().with_bprof(0xf_ffff).into_bits(), 0x3fff_fc00);
    assert_eq!(Bprsel::new().with_bpid(true).into_bits(), 0x8000_0000);
}
