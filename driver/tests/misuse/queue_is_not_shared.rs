//! A queue has one owner.
fn shared<T: Sync>() {}

fn main() {
    shared::<nvme_vfio::IoQueue>();
}
