//! The tables that are ours as a whole, for who wants them gone.

use serde_json::json;

use super::{NftError, TABLE, json, ports};
use crate::family::Family;

/// Family and name of those that are there, IPv4 first.
pub fn tables() -> Result<Vec<(Family, &'static str)>, NftError> {
    // Listed by their chains: nft 1.0.6 crashes when it has to write down a table's flags in JSON. None is without.
    let objects = json(&[json!({ "list": { "chains": null } })], "list chains")?;
    let chains: Vec<_> = objects.iter().filter_map(|object| object.get("chain")).collect();
    let there = |(family, name): &(Family, &str)| {
        chains.iter().any(|chain| chain["family"] == family.nft() && chain["table"] == *name)
    };
    let all = Family::ALL.into_iter().flat_map(|family| [TABLE, ports::TABLE].map(|name| (family, name)));
    Ok(all.filter(there).collect())
}

/// Removes one; false when there was none.
pub fn remove(family: Family, name: &str) -> Result<bool, NftError> {
    let ip = family.nft();
    let table = json!({ "delete": { "table": { "family": ip, "name": name } } });
    match json(&[table], &format!("remove table {ip} {name}")) {
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
            for table in ["ip overlay", "ip overlay-ports", "ip6 overlay", "inet overlay", "ip6 other"] {
                run(&format!("nft add table {table}"));
                run(&format!("nft add chain {table} c"));
            }
            let all = [(Family::Ipv4, TABLE), (Family::Ipv4, ports::TABLE), (Family::Ipv6, TABLE)];
            assert_eq!(tables().unwrap(), all);
            for (family, table) in tables().unwrap() {
                assert!(remove(family, table).unwrap());
                assert!(!remove(family, table).unwrap());
            }
            assert_eq!(run("nft list tables"), "table inet overlay\ntable ip6 other\n");
        });
    }
}
