//! A record of the kernel's log:
//! <https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg>.

use std::time::Duration;

/// What the kernel says in a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) text: String,
    pub(super) sequence: u64,
    pub(super) since_boot: Duration,
}

/// Reads `priority,sequence,microseconds,flags[,…];text`. `None` for the lines of properties that may follow,
/// for what a program wrote, for what is no record, and for a fragment (flag `c`): what continues a record is one
/// of its own when another came between, and may begin with a name that a user chose, such as a cgroup's.
pub(super) fn parse(record: &str) -> Option<Record> {
    let (head, text) = record.lines().next()?.split_once(';')?;
    let mut fields = head.split(',');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (priority, sequence) = (number()?, number()?);
    let since_boot = Duration::from_micros(number()?);
    let whole = fields.next()? == "-";
    // The facility is above the three bits of the level; the kernel gives its own to no program.
    (whole && priority >> 3 == 0).then(|| Record { text: text.to_owned(), sequence, since_boot })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(record: &str) -> Option<(String, u64, u64)> {
        let Record { text, sequence, since_boot } = parse(record)?;
        Some((text, sequence, since_boot.as_micros().try_into().unwrap()))
    }

    #[test]
    fn only_what_the_kernel_says_is_read() {
        let device = "3,1234,5140900,-,caller=T1;NVRM: Xid (PCI:0000:1b:00): 79, a;b, c\n \
                      SUBSYSTEM=pci\n DEVICE=+pci:0000:1b:00.0\n";
        let said = "NVRM: Xid (PCI:0000:1b:00): 79, a;b, c".to_owned();
        assert_eq!(parsed(device), Some((said, 1234, 5_140_900)));
        assert_eq!(parsed("4,0,0,-;"), Some((String::new(), 0, 0)));
        let other = [
            "",
            "\n",
            ";",
            " SUBSYSTEM=pci",
            "NVRM: Xid (PCI:0000:1b:00): 79",
            "3,1234,-;no time",
            "3,1234,99999999999999999999,-;too late",
            "-3,1234,5140900,-;no priority",
            "12,1235,5140901,-;NVRM: Xid (PCI:0000:1b:00): 79, says a program",
            "3,1236,5140902;no flags",
            "6,1237,5140903,c;NVRM: Xid (PCI:0000:1b:00): 79, says a cgroup's name",
            "6,1238,5140904,+,caller=T1;NVRM: Xid (PCI:0000:1b:00): 79, says a cgroup's name",
        ];
        assert_eq!(other.map(parsed), [const { None }; 12]);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(
            level in 0_u64..8,
            sequence: u64,
            since_boot: u64,
            text in "[^\r\n]*",
            rest in "( [^\n]*\n)*",
        ) {
            let record = format!("{level},{sequence},{since_boot},-;{text}\n{rest}");
            prop_assert_eq!(parsed(&record), Some((text, sequence, since_boot)));
        }

        #[test]
        fn nothing_is_too_strange(record: String) {
            parse(&record);
        }
    }
}
