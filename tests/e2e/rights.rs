//! The rights that the chart grants are enough: here nobody has any other.
//!
//! That each of them is needed is shown over all tests (`make test`), since no single story needs them all.

use std::collections::BTreeSet;

use testkit::RightUsed;

use crate::scene::{CONTROLLER, OPERATOR, Scene, TEAM};
use crate::story::Story;

/// All that was asked for until now.
async fn asked(scene: &Scene) -> BTreeSet<RightUsed> {
    scene.node.apiserver().audit_flush().await.unwrap();
    RightUsed::in_log(scene.node.audit(), &[]).unwrap()
}

/// Of all that was asked for until now, nothing was refused.
pub async fn none_refused(scene: &Scene) {
    let asked = asked(scene).await;
    let refused: Vec<_> = asked.iter().filter(|right| right.refused).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// Looks through all that was asked for since the start.
pub async fn are_enough(story: &mut Story, scene: &Scene) {
    story.step("nothing that the programs asked for was refused: the chart grants what they need");
    let asked = asked(scene).await;
    let used = asked.iter().filter(|right| !right.refused);
    // Replicas that kept the webhook's bundle true did so for a moment after the webhook had gone, and the right with it.
    let refused = |right: &&RightUsed| right.refused && right.resource != "mutatingwebhookconfigurations";
    let refused: Vec<_> = asked.iter().filter(refused).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let accounts: BTreeSet<(&str, &str)> =
        used.clone().map(|right| (right.account.0.as_str(), right.account.1.as_str())).collect();
    assert_eq!(accounts, BTreeSet::from([(OPERATOR, CONTROLLER), (TEAM, "vmcp-server")]));
    story.note(&format!("{} different rights were used", used.count()));
}
