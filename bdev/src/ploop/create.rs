//! New images.

use super::image::{Header, Problem};
use crate::device::ByteDevice;
use crate::errno::Errno;

/// Makes an empty image on a device. What is there is lost; the header comes last, so a crash leaves no
/// image. `nr_sectors`: size of the disk in it.
///
/// # Errors
/// A size that cannot be, or a device that is too short for header and BAT, as a [`Problem`].
pub async fn create(
    device: &dyn ByteDevice,
    nr_sectors: u64,
    cluster_sectors: u32,
) -> Result<Header, Problem> {
    let header = Header::new(nr_sectors, cluster_sectors)?;
    let block_bytes = device.block_bytes();
    if !(header.cluster() * 512).is_multiple_of(u64::from(block_bytes)) {
        return Err(Problem::BlockSize {
            cluster_sectors,
            data_sectors: header.data_sectors,
            block_bytes,
        });
    }
    if header.data() > device.nr_sectors() {
        return Err(Problem::BatOutside {
            bat_end: header.data(),
            device_sectors: device.nr_sectors(),
        });
    }
    let failed = |errno: Errno| Problem::Unreadable { sector: 0, errno };
    device.zero(0, header.data()).await.map_err(failed)?;
    device.flush().await.map_err(failed)?;
    let mut first = vec![0; block_bytes as usize];
    for (to, from) in first.iter_mut().zip(header.encode()) {
        *to = from;
    }
    device.write_bytes(0, &first).await.map_err(failed)?;
    device.flush().await.map_err(failed)?;
    Ok(header)
}
