//! The tables that are ours as a whole, for who wants them gone.

use serde_json::json;

use super::{NftError, TABLE, json};

/// The table of host ports.
pub(super) const PORTS_TABLE: &str = "overlay-ports";

/// The names of those that are there, in family `ip`.
pub fn tables() -> Result<Vec<&'static str>, NftError> {
    // Listed by their chains: nft 1.0.6 crashes when it has to write down a table's flags in JSON. None is without.
    let objects = json(&[json!({ "list": { "chains": null } })], "list chains")?;
    let chains: Vec<_> = objects.iter().filter_map(|object| object.get("chain")).collect();
    let there = |name: &str| chains.iter().any(|chain| chain["family"] == "ip" && chain["table"] == name);
    Ok([TABLE, PORTS_TABLE].into_iter().filter(|name| there(name)).collect())
}

/// Removes one; false when there was none.
pub fn remove(name: &str) -> Result<bool, NftError> {
    let table = json!({ "delete": { "table": { "family": "ip", "name": name } } });
    match json(&[table], &format!("remove table ip {name}")) {
        Ok(_) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netns::testing::{in_fresh_netns, run};

    #[test]
    fn tables_of_ours_are_found_and_removed_and_namesakes_left() {
        in_fresh_netns(|| {
            for table in ["ip overlay", "ip overlay-ports", "ip6 overlay", "ip other"] {
                run(&format!("nft add table {table}"));
                run(&format!("nft add chain {table} c"));
            }
            assert_eq!(tables().unwrap(), [TABLE, PORTS_TABLE]);
            for table in tables().unwrap() {
                assert!(remove(table).unwrap());
                assert!(!remove(table).unwrap());
            }
            assert_eq!(run("nft list tables"), "table ip6 overlay\ntable ip other\n");
        });
    }
}
