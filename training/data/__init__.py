"""From a folder of pictures to batches: index, splits, arrays, augmentation."""
