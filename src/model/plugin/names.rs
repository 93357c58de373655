//! What devices are called as extended resources.

/// What MIG devices of a profile are called after `nvidia.com/`: `mig-1g.10gb.me` for `1g.10gb+me`.
pub fn mig_resource(profile_name: &str) -> String {
    // Names of resources have no `+`.
    format!("mig-{}", profile_name.replace('+', "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mig_resource_is_named_after_its_profile() {
        let names = [
            ("1g.10gb", "mig-1g.10gb"),
            ("7g.141gb", "mig-7g.141gb"),
            ("1g.10gb+me", "mig-1g.10gb.me"),
            ("1g.24gb+me.all", "mig-1g.24gb.me.all"),
            ("2g.48gb+gfx", "mig-2g.48gb.gfx"),
            ("1g.24gb-me", "mig-1g.24gb-me"),
            ("1c.3g.40gb", "mig-1c.3g.40gb"),
            ("1c.2g.20gb+me", "mig-1c.2g.20gb.me"),
            ("1c.2g.48gb+gfx", "mig-1c.2g.48gb.gfx"),
            ("1c.2g.48gb-me", "mig-1c.2g.48gb-me"),
            ("1c.2g.48gb+me.all", "mig-1c.2g.48gb.me.all"),
        ];
        assert_eq!(names.map(|(profile, _)| mig_resource(profile)), names.map(|(_, name)| name));
    }
}
