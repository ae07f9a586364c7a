import pytest

from util.errors import UserError
from util.registry import Registry
from util.words import nearest, unknown


@pytest.fixture
def registry():
    registry = Registry("operator")

    @registry.register(name="gaussian_blur")
    class GaussianBlur:
        def __init__(self, kernel_size, intensity=3.0):
            self.kernel_size, self.intensity = kernel_size, intensity

    @registry.register("noise")
    def identity(**kwargs):
        return kwargs

    return registry


def test_register_hands_the_factory_back():
    registry = Registry("thing")

    @registry.register("a")
    def factory():
        return 1

    assert factory() == 1
    assert registry.get("a") is factory


def test_second_registration_of_a_name_is_an_error(registry):
    with pytest.raises(ValueError, match="operator 'noise' is already registered"):
        registry.register("noise")(dict)
    assert registry.build("noise") == {}, "the first one stays"


def test_names_are_sorted(registry):
    assert registry.names() == ["gaussian_blur", "noise"]


def test_unknown_name_lists_the_known_and_the_nearest(registry):
    with pytest.raises(UserError) as error:
        registry.get("gausian_blur")
    message = str(error.value)
    assert "unknown operator 'gausian_blur'" in message
    assert "did you mean 'gaussian_blur'?" in message
    assert "known: gaussian_blur, noise" in message
    assert "\n" not in message


def test_unknown_name_unlike_any_offers_no_guess(registry):
    with pytest.raises(UserError) as error:
        registry.get("xyz")
    assert "did you mean" not in str(error.value)
    assert "known: gaussian_blur, noise" in str(error.value)


@pytest.mark.parametrize("name", [None, 3, ["noise"], {"name": "noise"}])
def test_a_name_that_is_no_string_is_the_users_error(registry, name):
    with pytest.raises(UserError, match="unknown operator"):
        registry.get(name)


def test_build_passes_keywords(registry):
    blur = registry.build("gaussian_blur", kernel_size=61, intensity=2.0)
    assert (blur.kernel_size, blur.intensity) == (61, 2.0)
    assert registry.build("noise", anything=1) == {"anything": 1}, "a factory with ** takes every keyword"


def test_build_names_the_nearest_keyword(registry):
    with pytest.raises(
        UserError, match="setting of operator 'gaussian_blur' 'kernelsize': did you mean 'kernel_size'?"
    ):
        registry.build("gaussian_blur", kernelsize=61)


def test_build_names_what_is_missing(registry):
    with pytest.raises(UserError, match="operator 'gaussian_blur' needs kernel_size"):
        registry.build("gaussian_blur", intensity=1.0)


def test_an_error_inside_the_factory_is_not_mistaken_for_a_bad_keyword():
    registry = Registry("thing")

    @registry.register("broken")
    def broken(size):
        raise TypeError("got an unexpected keyword argument 'size'")

    with pytest.raises(TypeError, match="unexpected keyword") as error:
        registry.build("broken", size=1)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("word", "expected"), [("FFHQ", "ffhq"), ("celebs", "celeb"), ("imagenet", None), ("", None), (7, None)]
)
def test_nearest(word, expected):
    assert nearest(word, ["ffhq", "celeb"]) == expected


def test_unknown_with_nothing_known():
    assert str(unknown("preset", "x", [])) == "unknown preset 'x': known: (none)"
