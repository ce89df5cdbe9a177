"""What the command line needs to know of the data must not load PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import monai_ssl.data


@pytest.mark.parametrize(
    "code",
    [
        "from monai_ssl.data import load_preset; assert load_preset('left_atrium').n_classes == 2",
        "from monai_ssl.data import load_datalist; load_datalist('none.json', '/does/not/exist', strict=False)",
        "from monai_ssl.data import available_presets, images_to_segment; images_to_segment('/does/not/exist')",
        "import monai_ssl.data.rules, monai_ssl.data.pool, monai_ssl.data.cases",
    ],
)
def test_datalists_and_presets_need_no_torch(code):
    check = "import sys; heavy = {'torch', 'monai'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True)


def test_every_public_name_is_found_and_listed():
    for name in monai_ssl.data.__all__:
        assert getattr(monai_ssl.data, name) is not None
    assert set(monai_ssl.data.__all__) <= set(dir(monai_ssl.data))
    assert monai_ssl.data.cases.image_files({"image": "a.nii"}) == ["a.nii"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = monai_ssl.data.nonsense
